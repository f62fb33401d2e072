"""The 3D viewer's parts: NiiVue as an installed package ships it, and volumes as scripts.

A page opened from disk may neither import a module nor fetch a file, but may run classic scripts:
everything that the viewer loads becomes one.
"""

import base64
import importlib.util
import json
import pathlib
import re

import numpy as np
from jaxtyping import Float, Int16

from cdm_jax.errors import UserError

PACKAGE = "ipyniivue"
MODULE = "static/widget.js"
OPAQUE = 1000
# The widget makes its one viewer here; the class has another, minified name in each release.
_CLASS = re.compile(r"Creating new Niivue instance.{0,300}?=\s*new\s+([\w$]+)\s*\(", re.DOTALL)
_EXPORT = re.compile(r"\bexport\s*\{[^{}]*\}\s*;?\s*$")


def niivue_script() -> str:
    """NiiVue of the installed ipyniivue, as a classic script that defines `Niivue`.

    Raises:
        UserError: ipyniivue is not installed, or is of a form that this function does not know.
    """
    folder = _package()
    if folder is None:
        raise UserError(
            f"the 3D viewer needs the Python package {PACKAGE}: pip install {PACKAGE}, then write "
            "the report again"
        )
    module = folder / MODULE
    if not module.is_file():
        raise UserError(f"the installed {PACKAGE} has no {MODULE}: install a version from 2.4 on")
    return classic_script(module.read_text(encoding="utf-8"))


def _package() -> pathlib.Path | None:
    """Folder of the installed package, which is not imported: a notebook's parts come with it."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else pathlib.Path(found.origin).parent


def classic_script(module: str) -> str:
    """Turns ipyniivue's bundled ES module into a classic script that defines `Niivue`.

    The bundle imports nothing and exports only the notebook's widget, so its text is wrapped in a
    function, and the class that the widget uses is handed out instead.

    Raises:
        UserError: the class or the export is not where it is in the versions known.
    """
    name, export = _CLASS.search(module), _EXPORT.search(module)
    if name is None or export is None:
        raise UserError(
            f"the installed {PACKAGE} is built in a way that this version does not know: the 3D "
            "viewer was tested with 2.4"
        )
    return f"(() => {{\n{module[: export.start()]}\nglobalThis.Niivue = {name[1]};\n}})();\n"


def overlay_values(values: Float[np.ndarray, "z y x"], limit: float) -> Int16[np.ndarray, "z y x"]:
    """Encodes errors or deviations so that NiiVue draws them the more opaque the larger they are.

    NiiVue's opacity is the square of a value over its threshold, so the root is stored.

    Args:
        values: in units of [0, 1], signed.
        limit: the size from which on they are opaque; it becomes 1000.
    """
    return np.rint(np.sign(values) * np.sqrt(np.abs(values) / limit) * OPAQUE).astype(np.int16)


def volume_script(name: str, nifti: bytes) -> str:
    """A compressed NIfTI file as a classic script that hands it to the viewer's `cdmVolume`."""
    data = base64.b64encode(nifti).decode()
    return f"cdmVolume({json.dumps(name)}, {json.dumps(data)});\n"
