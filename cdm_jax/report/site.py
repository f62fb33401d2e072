"""Files of a report's folder: each as a whole or not at all, and none left from an earlier one."""

import pathlib

from cdm_jax.errors import UserError
from cdm_jax.files import replacing

GENERATED = (".css", ".html", ".js", ".png", ".svg")


class Site:
    """A folder of pages that is written file by file, and made if need be."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._written: set[pathlib.Path] = set()

    def write(self, name: str, content: str | bytes) -> str:
        """Writes a file below the folder and returns its name there, for links.

        Raises:
            UserError: the name, such as a record's subject, leads out of the folder.
        """
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{name} leads out of {self.root}: rename the subject of that record")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        self._written.add(path)
        return name

    def prune(self, folders: tuple[str, ...]) -> None:
        """Removes what an earlier report left in these folders, which hold nothing else."""
        for folder in folders:
            for path in sorted((self.root / folder).rglob("*")):
                if path.suffix in GENERATED and path not in self._written:
                    path.unlink()
