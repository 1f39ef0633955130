"""Model families as block programs: configuration, presets, the files of a pack, LoRA."""
