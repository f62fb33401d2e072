"""CDM: a cross-conditioned diffusion model that synthesises missing brain-MRI modalities."""

__version__ = "0.1.0"
