"""Kills trainings at random moments: each ends, bit for bit, as one that was left alone.

  python -m tests.stress.kill --kills=200 [--seed=0] [--kinds=mrm,cyclegan,pair] [--record=<json>]

A kind is a stage of the smallest networks, or "pair": M1 on two processes of two devices. Its
training is run once undisturbed, then in copies of the same folder that are killed (SIGKILL; one
in five by SIGTERM) at a moment drawn from the whole run: while JAX starts, in a step, in the middle
of a checkpoint. The same command goes on until it is done. Compared are the whole state
(parameters, optimizer, averages, pools, statistics), the position in the data, the best checkpoint,
and every logged number.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cdm_jax import checkpoint
from tests import processes

STEPS = 40
ALONE = {"mrm": "", "mdn": "mrm", "cunet": "mrm,mdn", "m1": "", "cyclegan": "", "diffusion": ""}
PAIR = "pair"
KINDS = (*ALONE, PAIR)
ENDS = 400  # seconds: who waits for a process that died while it joined does so for 300
LEFT = (".partial", ".orbax-checkpoint-tmp")  # what a write that did not end is called


def command(kind: str, workdir: pathlib.Path, process: int = 0, port: int = 0) -> list[str]:
    """The command line of one process of a kind's training."""
    stage = "m1" if kind == PAIR else kind
    values = {"num_steps": STEPS, "log_every": 1, "checkpoint_every": 5, "validate_every": 10}
    found = [sys.executable, "-m", "cdm_jax.main", f"--config=configs/phantom.py:{stage},smoke"]
    found += [f"--workdir={workdir}", "--config.pipeline=()", "--config.data.num_workers=1"]
    found += [f"--config.{stage}.train.{name}={value}" for name, value in values.items()]
    if kind == PAIR:
        found += [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
        found += [f"--process_id={process}"]
    return found


def start(kind: str, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Starts a kind's training."""
    port, number = processes.free_port(), 2 if kind == PAIR else 1
    variables = {
        "JAX_NUM_CPU_DEVICES": str(number),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling would take most of the time
    }
    return [
        subprocess.Popen(
            command(kind, workdir, process, port),
            cwd=processes.ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(number)
    ]


def end(started: list[subprocess.Popen]) -> None:
    """Waits for an undisturbed end."""
    for process in started:
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text[-3000:]


def disturb(rng: random.Random, started: list[subprocess.Popen], seconds: float) -> bool:
    """Kills a training at a random moment; whether it had not ended before."""
    victim, moment = rng.choice(started), time.monotonic() + rng.uniform(0, seconds)
    while time.monotonic() < moment and victim.poll() is None:
        time.sleep(0.01)
    if victim.poll() is not None:
        end(started)
        return False
    victim.send_signal(signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL)
    for process in started:  # where one is dead, the others end by themselves
        process.communicate(timeout=ENDS)
    return True


def outcome(stage_folder: pathlib.Path) -> dict:
    """Everything that has to be equal."""
    newest = stage_folder / checkpoint.FOLDER / str(checkpoint.latest_step(stage_folder))
    saved = ocp.metadata(newest.absolute(), checkpointable_name="state")
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved.metadata)
    state = ocp.load(newest.absolute(), wanted, checkpointable_name="state")
    described = saved.custom_metadata
    best, _ = checkpoint.load_model(stage_folder, "best")
    return {
        "state": _leaves(state),
        "best": _leaves(best),
        "validation": checkpoint.best(stage_folder),
        "position": described["position"],
        "finished": described["finished"],
        "log": (stage_folder / "metrics.jsonl").read_text(),
        "left over": [p.name for p in stage_folder.rglob("*") if any(n in p.name for n in LEFT)],
    }


def _leaves(tree) -> dict[str, bytes]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def stress(kind: str, kills: int, rng: random.Random, place: pathlib.Path) -> Counter:
    """Kills a kind's training so often; counts kills and runs that ended, all of them alike."""
    stage, before = ("m1", "") if kind == PAIR else (kind, ALONE[kind])
    whole, start_at = place / f"{kind}_whole", place / f"{kind}_start"
    for needed in filter(None, before.split(",")):
        end(start(needed, start_at))
    if not before:
        end(start("m1", start_at))  # for its patients, split and cache
        shutil.rmtree(start_at / "m1")
    shutil.copytree(start_at, whole, copy_function=shutil.copy2)
    begin = time.monotonic()
    end(start(kind, whole))
    seconds, expected, counts = time.monotonic() - begin, outcome(whole / stage), Counter()
    while counts["kills"] < kills:
        broken = place / f"{kind}_broken"
        shutil.copytree(start_at, broken, copy_function=shutil.copy2)
        while counts["kills"] < kills and disturb(rng, start(kind, broken), seconds):
            counts["kills"] += 1
        end(start(kind, broken))
        found = outcome(broken / stage)
        wrong = [name for name, value in expected.items() if found[name] != value]
        assert not wrong, f"{kind}: another {', '.join(wrong)} after kills"
        counts["runs"] += 1
        shutil.rmtree(broken)
    return counts


def main() -> None:
    """Kills each kind equally often, prints and writes the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="over all kinds, asked for or not")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--record", type=pathlib.Path, help="kinds that it has and are not asked for stay"
    )
    options = parser.parse_args()
    kinds, record = options.kinds.split(","), options.record
    done = json.loads(record.read_text())["kinds"] if record and record.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for number, kind in enumerate(KINDS):
            share = (options.kills + number) // len(KINDS)
            if kind not in kinds or not share:
                continue
            rng = random.Random(f"{options.seed} {kind}")
            done[kind] = dict(stress(kind, share, rng, pathlib.Path(place)))
            print(kind, done[kind], flush=True)
            if record:
                told = f"python -m tests.stress.kill --kills={options.kills} --seed={options.seed}"
                text = json.dumps({"command": told, "steps": STEPS, "kinds": done}, indent=1)
                record.write_text(text + "\n")


if __name__ == "__main__":
    main()
