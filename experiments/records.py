"""Committed results: the records of a study in one small file, and tables made from them."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cdm_jax.files import read_json
from cdm_jax.records import Record, check_record, read_records
from cdm_jax.report.tables import DECIMALS, FURTHER

RESULTS = pathlib.Path(__file__).parent / "results"
DIGITS = 5


def load_records(workdir: pathlib.Path, part: str = "test") -> list[Record]:
    """Records that `evaluate` left in a workdir, in order of subjects."""
    return read_records(workdir / "evaluation" / part)


def main_values(record: Record) -> Record:
    """A record without what the printed tables do not show: tumor regions and counts."""
    shown = (*DECIMALS, *FURTHER)
    rows = {
        row: {
            convention: {
                target: {metric: scores[metric] for metric in shown if metric in scores}
                for target, scores in targets.items()
            }
            for convention, targets in conventions.items()
        }
        for row, conventions in record["rows"].items()
    }
    return {**record, "rows": rows}


def save_results(name: str, content: Mapping[str, Any]) -> None:
    """Writes `experiments/results/<name>.json`."""
    write_rounded(RESULTS / f"{name}.json", content)


def write_rounded(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole or not at all, its numbers rounded to what they mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(rounded(content), separators=(",", ":")) + "\n")
    os.replace(temporary, path)


def load_results(name: str) -> dict[str, Any]:
    """Reads a committed file of results.

    Raises:
      UserError: it is damaged.
    """
    return read_results(RESULTS / f"{name}.json")


class SeedRecord:
    """The record of a study that trains everything once a seed: seeds join it one by one.

    Attributes:
      runs: name of a run -> part of it -> seed -> records.
    """

    def __init__(self, name: str, command: str, settings: Mapping[str, Any]):
        """Begins with what the record holds already, if it was made with these settings."""
        self._name, self._command, self._settings = name, command, settings
        try:
            found = load_results(name)
        except FileNotFoundError:
            found = {}
        same = {key: found.get(key) for key in settings} == rounded(settings)
        self.runs: dict[str, dict[str, dict[str, Any]]] = found["runs"] if same else {}

    def add(self, name: str, part: str, seed: int, records: Sequence[Record]) -> None:
        """What a seed gave, in place of what it gave before."""
        self.runs.setdefault(name, {}).setdefault(part, {})[str(seed)] = records

    def save(self) -> None:
        """Writes the record, with the command that makes it anew."""
        seeds = next(iter(next(iter(self.runs.values())).values()))
        command = f"{self._command} --seeds={','.join(sorted(seeds, key=int))}"
        save_results(self._name, {"command": command, **self._settings, "runs": self.runs})


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file of results, committed or not.

    Raises:
      UserError: it is damaged.
    """
    content = read_json(path)
    for record in content.get("records", ()):
        check_record(record, path.name)
    return content


def rounded(tree: Any) -> Any:
    """The same tree with floats cut to five digits after the point."""
    if isinstance(tree, Mapping):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [rounded(value) for value in tree]
    return round(tree, DIGITS) if isinstance(tree, float) else tree
