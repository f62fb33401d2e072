"""DDIM sampling as one `lax.scan` over precomputed steps (Eq. 3; Song et al. 2021)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cdm_jax import draws
from cdm_jax.diffusion import schedule
from cdm_jax.diffusion.process import corrupt, split_prediction, training_target

Predict = Callable[[Float[Array, "b *d"], Int[Array, "b"]], Float[Array, "b *d"]]


class Step(NamedTuple):
    """Everything that one sampling step needs, one row a step."""

    timestep: Int[Array, "*n"]
    alpha_bar: Float[Array, "*n"]
    alpha_bar_next: Float[Array, "*n"]
    sigma: Float[Array, "*n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """A DDIM sampler for networks of any prediction type.

    Attributes:
      alpha_bar: the training schedule, as a tuple of T values.
      num_steps: N, the number of network evaluations.
      eta: 0 is deterministic, 1 has the variance of DDPM's posterior (Song et al. 2021, Eq. 16).
      grid: which timesteps are visited, see `schedule.sampling_timesteps`.
      prediction: what the network outputs: x0 or noise.
      clip: bound of `|x0|` for data of a known range, None for none. From a predicted noise, x0 is
        found by dividing by sqrt(alpha_bar), which is 1/160 at first: small errors become huge.
    """

    alpha_bar: tuple[float, ...]
    num_steps: int = 30
    eta: float = 0.0
    grid: str = "ends"
    prediction: str = "x0"
    clip: float | None = None

    def __str__(self) -> str:
        return f"DDIM, {self.num_steps} steps, eta {self.eta:g}"

    def steps(self) -> Step:
        """The table over which the scan runs, from the noisiest step to the last."""
        table = np.asarray(self.alpha_bar)
        timesteps = schedule.sampling_timesteps(len(table), self.num_steps, self.grid)
        now = table[timesteps]
        after = np.append(now[1:], 1.0)  # the last step returns the estimate of x0 itself
        sigma = self.eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        return Step(
            jnp.asarray(timesteps),
            *(jnp.asarray(a, jnp.float32) for a in (now, after, sigma)),
        )

    def _split(self, prediction: Array, x: Array, signal: Array) -> tuple[Array, Array]:
        """Estimates of (x0, noise); from a clipped x0, the noise that explains x with it."""
        x0, direction = split_prediction(self.prediction, prediction, x, signal)
        if self.clip is None:
            return x0, direction
        return split_prediction("x0", jnp.clip(x0, -self.clip, self.clip), x, signal)

    def errors(
        self, predict: Predict, x0: Float[Array, "b *d"], key: Key[Array, "*keys"]
    ) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"]]:
        """What a network gets wrong at one uniform timestep an example (Ho et al. 2020, Eq. 14).

        Args:
          predict: as for `sample`.
          x0: examples without noise.
          key: drives timesteps and noise, of all examples or of each.

        Returns:
          The differences of its prediction from `training_target`, and of its x0 from the true one.
        """
        time_key, noise_key = draws.split(key)
        table = jnp.asarray(self.alpha_bar, jnp.float32)
        timesteps = functools.partial(jax.random.randint, minval=0, maxval=table.shape[0])
        t = draws.draw(time_key, x0.shape[:1], timesteps)
        noise = draws.normal(noise_key, x0.shape)
        x_t = corrupt(x0, noise, table[t])
        prediction = predict(x_t, t)
        restored, _ = split_prediction(self.prediction, prediction, x_t, table[t])
        return prediction - training_target(self.prediction, x0, noise, table[t]), restored - x0

    def sample(
        self, predict: Predict, noise: Float[Array, "b *d"], key: Key[Array, "*keys"]
    ) -> Float[Array, "b *d"]:
        """Turns pure noise into samples.

        Args:
          predict: the network, from (x_t, timesteps of shape [b]) to its prediction.
          noise: x_T ~ N(0, I).
          key: drives the noise of the steps, of all examples or of each; unused when eta is 0.

        Returns:
          Samples of the shape of `noise`.
        """

        def advance(x: Array, inputs: tuple[Step, Array]) -> tuple[Array, None]:
            """From x at one timestep to x at the next."""
            step, step_key = inputs
            prediction = predict(x, jnp.broadcast_to(step.timestep, x.shape[:1]))
            x0, direction = self._split(prediction, x, step.alpha_bar)
            # Song et al. 2021, Eq. 12.
            x = jnp.sqrt(step.alpha_bar_next) * x0
            x += jnp.sqrt(1 - step.alpha_bar_next - step.sigma**2) * direction
            if self.eta:
                x += step.sigma * draws.normal(step_key, x.shape)
            return x, None

        steps = self.steps()
        sample, _ = jax.lax.scan(advance, noise, (steps, draws.split(key, self.num_steps)))
        return sample


def make_sampler(
    settings: Any, training: Any, *, prediction: str, clip: float | None = None
) -> DDIM:
    """A sampler as a config describes it.

    Args:
      settings: `num_steps`, `eta` and `grid`, see `DDIM`.
      training: its `schedule` and `num_timesteps`.
      prediction: see `DDIM`.
      clip: see `DDIM`.

    Raises:
      UserError: a schedule, a grid or a number of steps that does not exist.
    """
    schedule.sampling_timesteps(training.num_timesteps, settings.num_steps, settings.grid)
    table = schedule.alpha_bar(training.schedule, training.num_timesteps)
    return DDIM(alpha_bar=tuple(table.tolist()), prediction=prediction, clip=clip, **settings)
