"""Exploration in addition to the exploration noise of the search."""
