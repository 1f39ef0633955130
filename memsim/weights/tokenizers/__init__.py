"""The ``tokenizer.json`` of checkpoints that bring none."""
