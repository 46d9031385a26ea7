"""Everything that a run consists of, in files that a run resumes from."""

from sb3_muzero.checkpointing.files import resume, save_checkpoint

__all__ = ["resume", "save_checkpoint"]
