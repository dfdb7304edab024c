"""ldm-video: prompted video inpainting and super-resolution with latent diffusion."""

__version__ = "0.1.0"
