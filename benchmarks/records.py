"""Committed results of the benchmarks, written and read as those of the experiments are."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.records import write_rounded

RESULTS = pathlib.Path(__file__).parent / "results"


def save_results(name: str, content: Mapping[str, Any]) -> None:
    """Writes `benchmarks/results/<name>.json`."""
    write_rounded(RESULTS / f"{name}.json", content)


def load_results(name: str) -> dict[str, Any]:
    """Reads a committed file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())
