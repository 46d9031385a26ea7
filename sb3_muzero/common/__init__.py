"""Utilities that every other package uses."""
