"""Traces hold the steps that were asked for, and tables say what is in them."""

import collections
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile, records, traces
from cdm_jax.errors import UserError
from cdm_jax.writer import ProfilerWindow
from tests.helpers import smoke_config, train

# What XLA's compiler prints for a CPU and for a GPU, shortened.
PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->()}

%fused_computation (param_0: f32[4,8]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  %convert.1 = f32[4,8]{1,0} convert(%param_0)
  ROOT %c.2 = f32[4,8]{1,0} convolution(%convert.1, %param_0), metadata={op_name="jit(step)/Conv"}
}

%region_1.3 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %dot.9 = f32[] dot(%a, %b)
}

%wrapped_computation (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %convert.2 = f32[4,8]{1,0} convert(%p)
}

ENTRY %main.6 (x: f32[4,8]) -> (f32[], f32[4,8]) {
  %x = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %fusion.1 = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation, \
metadata={op_name="jit(step)/while/body/closed_call/CUNet/jit(silu)/Conv_0/conv"}
  %fusion.2 = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%wrapped_computation
  %sum.1 = f32[] reduce(%x, %x), dimensions={0,1}, to_apply=%region_1.3
  %gemm.1 = (f32[4,8]{1,0}, s8[9]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %cudnn-conv.1 = (f32[4,8]{1,0}, u8[0]{0}) custom-call(%x), \
custom_call_target="__cudnn$convForward"
  %copy.1 = f32[4,8]{0,1} copy(%x)
  %ar.1 = f32[4,8]{1,0} all-reduce-start(%x), to_apply=%region_1.3
  %while.1 = (s32[], f32[4,8]{1,0}) while(%x), condition=%wrapped_computation, body=%region_1.3
  ROOT %tuple = (f32[], f32[4,8]{1,0}) tuple(%sum.1, %x)
}
"""


def test_operations_are_named_by_what_they_contain():
    found = {name: row.kind for name, row in traces.instructions(PROGRAM).items()}
    assert {name: found[name] for name in found if name.endswith(".1") or name == "fusion.2"} == {
        "convert.1": "elementwise",
        "fusion.1": "convolution",
        "fusion.2": "elementwise",
        "sum.1": "reduction",
        "gemm.1": "matrix product",
        "cudnn-conv.1": "convolution",
        "copy.1": "moving data",
        "ar.1": "collective",
        "while.1": "",
    }


def test_places_are_layers_without_what_jax_wraps_around_them():
    found = traces.instructions(PROGRAM)
    assert found["fusion.1"].place == "CUNet/Conv_0/conv"
    assert found["copy.1"].place == "copy.1 f32[4,8]{0,1}"


def test_the_time_of_an_event_is_without_those_within_it():
    """A loop of 100 ns holds two bodies, the first of which holds a third; one follows it."""
    events = [
        ("loop", 0.0, 100.0),
        ("body", 10.0, 30.0),
        ("body", 50.0, 20.0),
        ("inner", 10.0, 5.0),
        ("next", 100.0, 7.0),
    ]
    sums = collections.Counter()
    for name, own in traces.self_times(events):
        sums[name] += own
    assert sums == {"loop": 50, "body": 45, "inner": 5, "next": 7}


def test_the_rest_of_a_loops_passes_is_added_to_xlas_count():
    """Seven passes over a product of 2 x 3 by 3 x 3, of which each second one is doubled."""
    weights, x = jnp.ones((3, 3)), jnp.ones((2, 3))

    def inner(carry, _):
        return carry @ weights, None

    def outer(carry, _):
        return jax.lax.scan(inner, carry, None, length=4)[0] @ weights, None

    program = profile.Program(
        stage="",
        part="",
        slices=1,
        function=jax.jit(lambda x: jax.lax.scan(outer, x, None, length=7)[0]),
        arguments=(x,),
        advance=lambda returned, arguments: arguments,
    )
    product = 2 * 2 * 3 * 3
    counted = profile.executed_flops(program)
    assert 7 * (4 + 1) * product <= counted <= 7 * (4 + 1) * product + 7 * (4 + 1) * 2


def calls(folder, module):
    """How often each operation of a program ran in a trace."""
    lines = traces.events(traces.newest(folder), module)
    return collections.Counter(name for line in lines for name, _, _ in line)


def test_the_window_holds_its_steps_and_no_other(tmp_path):
    """Python is far ahead of the device: without waiting, the trace would hold earlier steps."""

    @jax.jit
    def slow_step(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=100)[0]

    x = slow_step(jnp.ones((256, 256)))
    window = ProfilerWindow(tmp_path, first_step=3, num_steps=2)
    for step in range(1, 8):
        window.before(step, x)
        x = slow_step(x)
    window.close(x)
    counted = calls(tmp_path / "profile", "jit_slow_step")
    assert [n for name, n in counted.items() if "tanh" in name] == [200]


def test_no_steps_leave_no_trace(tmp_path):
    window = ProfilerWindow(tmp_path, first_step=0, num_steps=0)
    for step in range(3):
        window.before(step, ())
    window.close(())
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="never reached"):
        traces.newest(tmp_path)


@pytest.mark.slow
def test_a_real_run_traces_the_steps_that_its_config_names(tmp_path):
    config = smoke_config("m1")
    config.profile.update({"first_step": 2, "num_steps": 2})
    config.m1.train.log_every = 4  # nothing else waits for the device before the last step
    train("m1", tmp_path, config)
    counted = calls(tmp_path / "m1/profile", "jit_step")
    assert len(counted) > 20
    assert set(counted.values()) == {2}


@pytest.mark.slow
def test_a_profile_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Each program is traced, its time spread over operations, and the table printed again."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    options = ["--dataset=brats", "--smoke", "--stages=mdn,cunet"]
    profile.main([*options, "--steps=2", f"--workdir={tmp_path / 'traces'}"])
    content = json.loads((tmp_path / "results/brats/profile.json").read_text())
    assert [(row["stage"], row["part"]) for row in content["rows"]] == [
        ("mdn", "step"),
        ("cunet", "step"),
        ("cunet", "sampler"),
    ]
    for row in content["rows"]:
        total = row["operation_milliseconds"]
        assert sum(row["kinds"].values()) == pytest.approx(total, rel=1e-3)
        assert {"convolution", "matrix product", "reduction"} <= set(row["kinds"])
        assert total > 0 and row["seconds"] > 0 and row["flops"] > 1e6
        assert len(list((tmp_path / "traces").glob(f"{row['stage']}_{row['part']}/plugins/*"))) == 1
    printed = capsys.readouterr().out
    assert "cunet, sampler: " in printed and "% of the operations' time" in printed
    assert "pip install xprof" in printed and "ui.perfetto.dev" in printed
    profile.main(["--dataset=brats", "--show"])
    assert capsys.readouterr().out.splitlines()[0] in printed


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        profile.main(["--smoke", "--stages=data"])
    assert "unknown stage 'data'" in capsys.readouterr().err
