"""JSON files: written as a whole or not at all, read or refused in one line."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from cdm_jax.errors import UserError


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise UserError(
            f"{path} is not JSON ({error}): restore it, or delete it and make it again"
        ) from error
