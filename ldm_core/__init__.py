"""ldm_core: latent diffusion that you can trust, read and take apart."""
