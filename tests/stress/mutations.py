"""Ways to damage bytes, JSON, images, command-line values and folders, each drawn at random."""

import gzip
import json
import pathlib
import random
import shutil
import struct

ODD_VALUES = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    10**30,
    "",
    "x",
    "../..",
    [],
    [[]],
    {},
    {"": 0},
)
ODD_TEXTS = ("", "=", "-1", "0", "1e999", "nan", "()", "(1", "'", "[]", "{}", "True", "x" * 5000)
ODD_TEXTS += ("a,b", "\n", "\0", "é", "__class__", "../../etc", "{'a': 1}", "1" * 400)
ODD_NAMES = ("é.nii", "a b.nii.gz", ".nii.gz", "t1.nii.gz", "x" * 200, "sub-01_T1w.nii.gz", "-.nii")
ODD_NAMES += ("BraTS-GLI-00001-000-t1n.nii.gz", "UPENN-GBM-00001_11_T2.nii.gz", "a\nb.nii", "*.nii")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flips, cuts, repeats, replaces or removes a part."""
    here, there = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    part = content[here:there]
    return rng.choice(
        [
            lambda: content[:here],
            lambda: content[:here] + content[there:],
            lambda: content[:there] + part + content[there:],
            lambda: content[:here] + bytes(len(part)) + content[there:],
            lambda: content[:here] + rng.randbytes(min(len(part), 64)) + content[here + 64 :],
            lambda: _with_flips(rng, content),
            lambda: POINTER,
            lambda: b"<html>not found</html>",
            lambda: b"",
        ]
    )()


def _with_flips(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 30])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage_image(rng: random.Random, path: pathlib.Path) -> None:
    """Damages a gzipped NIfTI file: the stream, or what is within, mostly its header."""
    content = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(damage_bytes(rng, content))
        return
    plain = gzip.decompress(content)
    header, voxels = bytearray(plain[:352]), plain[352:]
    if rng.random() < 0.7:
        for _ in range(rng.choice([1, 1, 2, 5])):
            kind, size = rng.choice([("<h", 2), ("<i", 4), ("<f", 4)])
            value = rng.choice([0, -1, 1, 7, 32767]) if kind != "<f" else rng.choice(ODD_FLOATS)
            struct.pack_into(kind, header, rng.randrange(0, 352 - size), value)
    else:
        voxels = damage_bytes(rng, voxels)
    path.write_bytes(gzip.compress(bytes(header) + voxels, 1))


ODD_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e-38, 1e38)


def damage_json(rng: random.Random, path: pathlib.Path) -> None:
    """Damages a JSON file: its text, or one of its values."""
    text = path.read_text()
    if rng.random() < 0.3:
        path.write_bytes(damage_bytes(rng, text.encode()))
        return
    content = json.loads(text)
    path.write_text(json.dumps(_with_odd_value(rng, content)))


def _with_odd_value(rng: random.Random, content):
    """A nested value with one of its values replaced or removed."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.15:
        return rng.choice(ODD_VALUES)
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key, changed = rng.choice(list(keys)), content.copy()
    if rng.random() < 0.2:
        del changed[key]
    else:
        changed[key] = _with_odd_value(rng, content[key])
    return changed


def damage_tree(rng: random.Random, root: pathlib.Path) -> None:
    """Moves, copies, links, replaces or removes some of the files and folders below a folder."""
    for _ in range(rng.randint(1, 4)):
        paths = sorted(root.rglob("*"))
        if not paths:
            return
        path = rng.choice(paths)
        folders = [root, *(p for p in paths if p.is_dir() and not p.is_symlink())]
        other = rng.choice(folders) / rng.choice([path.name, rng.choice(ODD_NAMES)])
        rng.choice([_move, _move, _copy, _link, _replace_by_folder, _remove])(path, other)


def _move(path: pathlib.Path, other: pathlib.Path) -> None:
    if not other.exists() and path not in other.parents:
        path.rename(other)


def _copy(path: pathlib.Path, other: pathlib.Path) -> None:
    if path.is_file() and not other.exists():
        shutil.copy(path, other)


def _link(path: pathlib.Path, other: pathlib.Path) -> None:
    if not other.exists() and not other.is_symlink():
        other.symlink_to(path)  # of a folder that holds it: a loop


def _replace_by_folder(path: pathlib.Path, other: pathlib.Path) -> None:
    if path.is_file() and not path.is_symlink():
        path.unlink()
        path.mkdir()


def _remove(path: pathlib.Path, other: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
