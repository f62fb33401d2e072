import numpy as np
import pytest

from cdm_jax.diffusion.schedule import BETAS, alpha_bar, sampling_timesteps
from cdm_jax.errors import UserError


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_signal_power_falls_from_nearly_one_to_nearly_zero(kind, num_timesteps):
    table = alpha_bar(kind, num_timesteps)
    assert table.shape == (num_timesteps,)
    assert (np.diff(table) < 0).all()
    assert 0.97 < table[0] < 1
    assert 0 < table[-1] < 2e-4


def test_linear_schedule_ends_where_ho_et_al_end():
    # prod (1 - beta) of 1000 betas from 1e-4 to .02, by logarithms.
    expected = np.exp(np.log1p(-np.linspace(1e-4, 0.02, 1000)).sum())
    assert alpha_bar("linear", 1000)[-1] == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(4.04e-5, rel=1e-2)


def test_total_noise_hardly_depends_on_the_number_of_timesteps():
    short, long = (np.log(alpha_bar("linear", n)[-1]) for n in (200, 1000))
    assert short == pytest.approx(long, rel=0.05)


def test_unknown_schedule_and_too_few_timesteps_are_refused():
    with pytest.raises(UserError, match="linear"):
        alpha_bar("cosine-ish", 1000)
    with pytest.raises(UserError, match="too few"):
        alpha_bar("linear", 10)


@pytest.mark.parametrize("num_steps", [2, 10, 20, 30, 40, 1000])
def test_ends_grid_has_exactly_n_steps_from_the_noisiest_to_the_last(num_steps):
    timesteps = sampling_timesteps(1000, num_steps, "ends")
    assert len(timesteps) == num_steps
    assert timesteps[0] == 999
    assert timesteps[-1] == 0
    assert (np.diff(timesteps) < 0).all()


def test_one_step_starts_at_the_noisiest_timestep():
    assert sampling_timesteps(1000, 1, "ends").tolist() == [999]


def test_stride_grid_is_a_regular_subsequence():
    assert sampling_timesteps(1000, 4, "stride").tolist() == [750, 500, 250, 0]


@pytest.mark.parametrize(("num_steps", "grid"), [(0, "ends"), (1001, "ends"), (10, "spiral")])
def test_impossible_subsequences_are_refused(num_steps, grid):
    with pytest.raises(UserError, match="allowed"):
        sampling_timesteps(1000, num_steps, grid)
