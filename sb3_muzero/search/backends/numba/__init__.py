"""The search and the model in one compiled function."""
