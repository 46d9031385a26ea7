"""One update: targets, losses, reanalysis."""
