"""Checkpoints of complete training runs, and resuming from them."""

from sb3_muzero.checkpointing.files import load_model, resume, save_checkpoint

__all__ = ["load_model", "resume", "save_checkpoint"]
