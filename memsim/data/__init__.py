"""From text and examples to windows of (ids, labels): tokenizers run in processes of their own."""
