"""Diffusion: schedules, the forward process and the DDIM sampler."""
