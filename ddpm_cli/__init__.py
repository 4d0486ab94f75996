"""Config-driven training and sampling of denoising diffusion models."""
