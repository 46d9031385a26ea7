"""Checkpoints of complete training runs, and resuming from them."""

from sb3_muzero.checkpointing.files import resume, save_checkpoint

__all__ = ["resume", "save_checkpoint"]
