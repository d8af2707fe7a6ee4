"""The trainer, its data, its checkpoints."""
