"""The latent model: representation, dynamics and prediction networks."""
