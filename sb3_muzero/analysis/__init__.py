"""What a model learned: diagnostics, recordings, plots and reports."""
