"""Prints the oldest allowed version of each dependency, as constraints for pip.

python tests/oldest.py > oldest.txt
"""

import pathlib
import re
import tomllib

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"


def oldest(requirements: list[str]) -> list[str]:
    """`name>=version` to `name==version`; a requirement without a lower bound is an error."""
    found = []
    for requirement in requirements:
        name, version = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement).groups()
        found.append(f"{name}=={version}")
    return found


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text())["project"]
    print("\n".join(oldest(project["dependencies"] + project["optional-dependencies"]["demo"])))
