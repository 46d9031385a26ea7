"""Wrappers for environments that SB3 does not take as they are."""
