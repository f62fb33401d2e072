"""The training steps of C-UNet and M1 in PyTorch, where that is installed."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from benchmarks.networks import networks
from benchmarks.parts.checks import ROOT
from benchmarks.parts.rows import Row, SkippedError
from benchmarks.parts.session import NO_TIME, Session
from cdm_jax.shapes import create, source_channels

NETWORKS = ("cunet", "m1")


def pytorch(session: Session) -> Iterator[Row]:
    """The rows of `benchmarks.parts.torch_steps`, as it finds them.

    Raises:
      SkippedError: PyTorch is not installed.
      RuntimeError: the process failed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SkippedError("PyTorch is not installed")
    command = [sys.executable, "-m", "benchmarks.parts.torch_steps", json.dumps(given(session))]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        killed = threading.Timer(max(1, session.left()), process.kill)
        killed.start()
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        killed.cancel()
        if session.left() <= 0:
            yield {"mode": "the others", "skipped": NO_TIME}
        elif process.wait():
            errors.seek(0)
            raise RuntimeError(f"PyTorch's process failed: {errors.read()[-400:]}")


def given(session: Session) -> dict[str, Any]:
    """What that process needs to know: networks, parameters of ours, sizes."""
    config = session.config("float32")
    found = {stage: cunet_options(config, stage) for stage in NETWORKS}
    batch = config.cunet.train.batch_size_per_device
    return {"networks": found, "size": config.data.size, "batch": batch, "smoke": session.smoke}


def cunet_options(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The arguments of PyTorch's `CUNet`, and the "parameters" that it should have."""
    section, mdn = config[stage], create(config, stage).mdn  # type: ignore[attr-defined]
    (network,) = networks(config, stage)
    return {
        "features": list(section.features),
        "sources": source_channels(config.data),
        "targets": len(config.data.targets),
        "groups": section.groups,
        "representation": mdn.representation.representation_width if mdn else 0,
        "parameters": network.parameters(),
    }
