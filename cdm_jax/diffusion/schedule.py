"""Noise schedules and the timesteps that a sampler visits.

A schedule is the array alpha_bar of Eq. 2: alpha_bar[t] = prod_{s<=t} (1 - beta_s), t = 0 .. T-1.
It is computed once, in float64 on the host, and enters compiled code as a constant.
"""

import numpy as np
from jaxtyping import Float, Int

from cdm_jax.errors import UserError


def _linear(num_timesteps: int) -> Float[np.ndarray, "t"]:
    scale = 1000 / num_timesteps  # the same total noise whatever T (Nichol & Dhariwal 2021)
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps)


def _scaled_linear(num_timesteps: int) -> Float[np.ndarray, "t"]:
    scale = 1000 / num_timesteps
    return scale * np.linspace(0.0015**0.5, 0.0195**0.5, num_timesteps) ** 2


BETAS = {
    "linear": _linear,  # Ho et al. 2020, cited by the paper
    "scaled_linear": _scaled_linear,  # Rombach et al. 2022; RCG's RDM
}


def alpha_bar(kind: str, num_timesteps: int) -> Float[np.ndarray, "t"]:
    """Cumulative signal power of a named schedule.

    Args:
      kind: a key of `BETAS`.
      num_timesteps: T.

    Returns:
      Strictly decreasing values in (0, 1), float64.

    Raises:
      UserError: the schedule is unknown, or T makes a beta reach 1.
    """
    if kind not in BETAS:
        raise UserError(f"unknown noise schedule '{kind}': allowed are {', '.join(BETAS)}")
    betas = BETAS[kind](num_timesteps)
    if not 0 < betas.max() < 1:
        raise UserError(
            f"{num_timesteps} timesteps are too few for schedule '{kind}': use 50 or more"
        )
    return np.cumprod(1 - betas)


def sampling_timesteps(num_timesteps: int, num_steps: int, grid: str) -> Int[np.ndarray, "n"]:
    """The timesteps that a sampler of `num_steps` steps visits, in descending order.

    Grids:
      ends: evenly spaced with both ends (0 and T-1), so sampling starts where the noise is purest.
      stride: multiples of T // N from 0, the first N (Song et al. 2021, "linear").

    Args:
      num_timesteps: T of the training process.
      num_steps: N, between 1 and T.
      grid: one of the grids above.

    Raises:
      UserError: N is out of range or the grid is unknown.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise UserError(f"sampler.num_steps is {num_steps}: allowed are 1 to {num_timesteps}")
    if grid == "ends":
        return np.linspace(num_timesteps - 1, 0, num_steps).round().astype(np.int32)
    if grid == "stride":
        return (np.arange(num_steps)[::-1] * (num_timesteps // num_steps)).astype(np.int32)
    raise UserError(f"unknown sampler.grid '{grid}': allowed are ends, stride")
