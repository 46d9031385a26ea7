"""Everything a run consists of, in files that a run resumes from."""
