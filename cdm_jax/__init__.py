"""CDM: a cross-conditioned diffusion model that synthesises missing brain-MRI modalities."""
