"""The one loop: restore, step, log, validate, save. It knows no method.

Order within a step, on which exact resuming rests: the state and the position of the data iterator
are saved together, after the update and before the next batch is drawn.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from clu.metrics import Average
from jaxtyping import Array
from ml_collections import ConfigDict

from cdm_jax import checkpoint, guard, parallel
from cdm_jax.data.dataset import Dataset
from cdm_jax.data.pipeline import prefetched, subjects_of_batch, training_batches
from cdm_jax.initial import find_initial, start_from
from cdm_jax.methods import base
from cdm_jax.run import Run, check_resumes, load_frozen, resolve, stage_keys, training_slices
from cdm_jax.shapes import Shapes, example
from cdm_jax.tasks import PATTERNS, Task, task_of
from cdm_jax.validation import Validation, better, judged
from cdm_jax.writer import SAVED, ProfilerWindow, StopRequest, TrainingProgress, Writer, console

MEASURED_SLICES = 4096  # enough for the means and covariances that `finish` measures

Step = Callable[[base.State, guard.Totals, Any], tuple[base.State, guard.Totals]]


def make_step(
    method: base.Method,
    root: Array,
    devices: parallel.Devices,
    state: base.State,
    batch: Shapes,
    task: Task,
    *,
    skip: bool = False,
) -> tuple[Step, guard.Totals]:
    """The compiled step, and running means of nothing, for the metrics that it counts.

    A step: stored batch to floats, update, running means; the state is donated. It is guarded; with
    `skip`, one that is not finite changes nothing.

    Args:
      method: what is trained.
      root: the key that those of all steps come from.
      devices: where the step runs.
      state: a state, for its shapes.
      batch: the shapes of a global batch, as the method sees it.
      task: what a stored slice gives.
      skip: see above.
    """
    update = jax.jit(method.update, inline=True)  # traced once, for the metrics and for the step
    whole = parallel.replicated(devices.mesh)
    shapes = parallel.placed((state, batch, jax.eval_shape(lambda: root)), whole)
    _, metrics = jax.eval_shape(update, *shapes)
    totals = {name: Average.empty() for name in (*metrics, guard.FINITE)}

    def step(
        state: base.State, totals: guard.Totals, batch: Any
    ) -> tuple[base.State, guard.Totals]:
        """State and running means after one batch."""
        key = jax.random.fold_in(root, state.step)
        floats = task.batch(batch, jax.random.fold_in(key, PATTERNS), training=True)
        after, metrics = update(state, floats, key)
        return guard.merged(state, after, totals, parallel.mean(metrics), skip=skip)

    return devices.compile(step, state), jax.device_put(totals, whole)


def train_stage(config: ConfigDict, workdir: pathlib.Path, dataset: Dataset) -> bool:
    """Trains the config's stage to its end, continuing from its newest checkpoint.

    Returns:
      Whether there was anything left to train.

    Raises:
      MissingStageError: a stage that this one needs is missing.
      UserError: settings do not fit.
      SystemExit: the run was asked to stop; it has saved and continues by the same command. The
        exit code is `writer.SAVED`.
    """
    folder = workdir / config.stage
    config = resolve(config, training_slices(dataset))
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        method=base.create(config),
        devices=parallel.all_devices(config.parallel),
        keys=stage_keys(config),
    )
    check_resumes(config, folder, dataset.split_hash)
    with checkpoint.Checkpoints(folder, config.checkpoint.keep) as checkpoints:
        if _is_finished(run, checkpoints):
            console.print(f"[bold]{config.stage}[/] is finished: {folder}")
            return False
        frozen = load_frozen(run.method, config, workdir)
        with contextlib.closing(_training_iterator(run)) as batches:
            state = _start(run, frozen, checkpoints, batches)
            with Writer(folder, int(state.step)) as writer:
                state, best = _loop(run, state, batches, checkpoints, writer)
                state = _finish(run, state, best, checkpoints, writer)
            provenance = run.provenance()
            checkpoints.save(int(state.step), state, batches, provenance, finished=True)
    return True


def _is_finished(run: Run, checkpoints: checkpoint.Checkpoints) -> bool:
    """Whether there is nothing left to train: all steps are done, or it had stopped early."""
    saved = checkpoint.provenance(run.folder)
    if saved is None or not checkpoint.finished(run.folder):
        return False
    before = saved.config[saved.config.stage].train
    if run.length.patience and run.length.patience == before.patience:  # it may have stopped early
        return before.num_steps >= run.length.num_steps
    return (checkpoints.latest_step or 0) >= run.length.num_steps


def _training_iterator(run: Run) -> Any:
    """Endless shuffled batches of this process, prefetched to the devices."""
    batches = training_batches(
        run.dataset.train,
        **_order(run),
        context=task_of(run.config.data).context,
        threads=run.config.data.read_threads or os.cpu_count() or 1,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return iter(prefetched(batches, run.devices.put))


def _order(run: Run) -> dict[str, Any]:
    """What the order of training slices follows from."""
    return {
        "batch_size": run.batch_size,
        "seed": run.config.seed,
        "flips": run.config.data.flips,
        "paired": run.method.paired,
        "any_to_any": task_of(run.config.data).is_any,
        "simulated": run.dataset.simulated,
        "simulated_share": run.config.data.simulated.share,
    }


def _start(
    run: Run, frozen: base.Model, checkpoints: checkpoint.Checkpoints, batches: Any
) -> base.State:
    """The newest checkpoint's state, or a fresh one, on the mesh."""
    shapes = example(run.config, run.batch_size)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    arguments = (run.keys[0], zeros, frozen)
    if checkpoints.latest_step is not None:
        shapes = jax.eval_shape(run.method.init, *arguments)
        state = checkpoints.restore(run.devices.sharded_shapes(shapes), batches)
        step, batch = int(state.step), _batch_in_words(run)
        console.print(f"[bold]{run.config.stage}[/] goes on from step {step}, {batch}")
        return state
    state = run.devices.init_sharded(run.method.init, *arguments)
    source = run.config.init_from
    if (found := find_initial(source, run.config.stage)) is not None:
        state = start_from(state, found, source)
        console.print(f"[bold]{run.config.stage}[/] starts from {source}")
    if parallel.is_first():
        run.folder.mkdir(parents=True, exist_ok=True)
        overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        (run.folder / "parameters.txt").write_text(overview)
    count = parameter_overview.count_parameters(state.params)
    console.print(f"[bold]{run.config.stage}[/]: {count:,} parameters, {_batch_in_words(run)}")
    return state


def _batch_in_words(run: Run) -> str:
    """The effective batch, and what it is made of."""
    each, devices = run.length.batch_size_per_device, jax.device_count()
    batches = run.config[run.config.stage].optimizer.accumulate
    text = f"effective batch {run.batch_size * batches}"
    parts = [f"{each} a device", f"{devices} devices", f"{batches} batches an update"]
    factors = [part for part, n in zip(parts, (2, devices, batches), strict=True) if n > 1]
    return f"{text} = {' x '.join(factors)}" if len(factors) > 1 else text


def _loop(
    run: Run,
    state: base.State,
    batches: Iterator[Any],
    checkpoints: checkpoint.Checkpoints,
    writer: Writer,
) -> tuple[base.State, checkpoint.Best | None]:
    """Steps until the last one, with all that happens between them.

    Returns:
      The state, and which validation was the best.
    """
    length, first = run.length, int(state.step)
    task = task_of(run.config.data)
    skip = guard.is_skipping(length)
    batch = example(run.config, run.batch_size)
    step_function, nothing = make_step(
        run.method, run.keys[1], run.devices, state, batch, task, skip=skip
    )
    validation = Validation(run) if run.dataset.validation else None
    patience = length.patience * length.validate_every
    profiler = ProfilerWindow(run.folder, **run.config.profile.to_dict())
    totals = nothing
    with StopRequest() as stop, TrainingProgress(run.config.stage, first, length.num_steps) as bar:
        best = checkpoints.best
        if validation and not first:
            _validate(run, 0, state, validation, None, writer, bar)
        for step in range(first + 1, length.num_steps + 1):
            profiler.before(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, totals = step_function(state, totals, next(batches))
            last = step == length.num_steps
            logs, validates = (
                last or step % every == 0 for every in (length.log_every, length.validate_every)
            )
            if logs or validates:
                beside = _check_finite(run, totals, step, skip, checkpoints)
            if logs:
                averages = {name: v.compute() for name, v in totals.items() if name != guard.FINITE}
                averages |= beside
                writer.scalars(step, averages)
                bar.show(step, averages["loss"], run.batch_size)
                totals = nothing
            if validation and validates:
                found = _validate(run, step, state, validation, best, writer, bar)
                if found != best and found is not None and not last:
                    checkpoints.save_best(step, state, found, run.provenance())
                best = found
                if best and length.patience and step - best.step >= patience:
                    bar.stop(step)
                    break
            leave = parallel.stop_requested(step, stop.requested) and not last
            if not last and (step % length.checkpoint_every == 0 or leave):
                _check_finite(run, totals, step, skip, checkpoints)
                checkpoints.save(step, state, batches, run.provenance())
            if leave:
                _leave(step)
        profiler.close(state)
    return state, best


def _leave(step: int) -> NoReturn:
    """Ends the program as was asked for; all is saved."""
    told = f"stopped, saved at step {step}; the same command goes on"
    print(told, file=sys.stderr, flush=True)
    raise SystemExit(SAVED)


def _check_finite(
    run: Run, totals: guard.Totals, step: int, skip: bool, checkpoints: checkpoint.Checkpoints
) -> Mapping[str, int]:
    """Refuses to go on from what is not finite; gives what to log where it is skipped."""

    def subjects(number: int) -> list[str]:
        """Whose slices a step saw."""
        return subjects_of_batch(run.dataset.train, number - 1, **_order(run))

    saved, stage = checkpoints.latest_step, run.config.stage
    return guard.check(totals, step, skip=skip, stage=stage, subjects=subjects, saved=saved)


def _validate(
    run: Run,
    step: int,
    state: base.State,
    validation: Validation,
    best: checkpoint.Best | None,
    writer: Writer,
    bar: TrainingProgress,
) -> checkpoint.Best | None:
    """Measures and logs; returns which validation is the best, the one before or this one."""
    metrics, pictures = validation.measure(state)
    writer.scalars(step, {f"validation/{k}": v for k, v in metrics.items()})
    writer.pictures(step, pictures)
    metric = run.length.best_by
    value = judged(metrics, metric, run.config.data.targets)
    is_best = step > 0 and better(metric, value, best)
    bar.note(step, metrics, is_best)
    return checkpoint.Best(step=step, metric=metric, value=value) if is_best else best


def _finish(
    run: Run,
    state: base.State,
    best: checkpoint.Best | None,
    checkpoints: checkpoint.Checkpoints,
    writer: Writer,
) -> base.State:
    """The last state with what the method measures at the end; the best one is kept with that too.

    Single numbers are logged, those of the best state where there are two.
    """
    measured = chosen = _measured(run, state)
    if best is not None:
        if best.step != int(state.step):
            shapes = checkpoint.inference_part(jax.eval_shape(lambda: state))
            chosen = checkpoints.restore_best(run.devices.sharded_shapes(shapes))
            chosen = _measured(run, chosen)
        checkpoints.save_best(int(state.step), chosen, best, run.provenance())
    arrays = {k: v for k, v in jax.device_get(chosen.statistics).items() if not isinstance(v, dict)}
    numbers = {f"final/{k}": v for k, v in arrays.items() if np.ndim(v) == 0}
    if numbers:
        writer.scalars(int(state.step), numbers)
        console.print(", ".join(f"{name} {float(v):.3f}" for name, v in numbers.items()))
    return measured


def _measured(run: Run, state: base.State) -> base.State:
    """A state with the statistics that the method measures."""
    validation = run.dataset.validation
    if not validation:
        console.print("no validation patients: measuring on training patients, which flatters")
        validation = run.dataset.train
    measured = run.method.finish(
        run.devices.replicate(state),
        lambda: run.slices(run.dataset.train, MEASURED_SLICES),
        lambda: run.slices(validation, MEASURED_SLICES),
        run.keys[2],
    )
    statistics = jax.device_get(measured.statistics)
    return state.replace(
        statistics=jax.device_put(statistics, parallel.replicated(run.devices.mesh))
    )
