"""Generator, latent-MAE and SD-VAE, their exports, and weights from elsewhere."""
