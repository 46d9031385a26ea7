"""Where the model is evaluated during a search."""
