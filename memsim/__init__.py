"""memsim: run, profile and simulate on-device LoRA fine-tuning under a memory cap."""

__version__ = "0.1.0"
