"""Exploration beside the search's own noise."""
