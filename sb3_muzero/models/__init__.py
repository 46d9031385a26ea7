"""Latent models: representation, dynamics and prediction functions."""
