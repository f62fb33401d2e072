"""What the row "copy" shows."""

import pytest
from ml_collections import ConfigDict

from cdm_jax.data.dataset import copied_sources
from cdm_jax.errors import UserError


def copied(sources, targets, copies=()):
    return copied_sources(ConfigDict({"sources": sources, "targets": targets, "copies": copies}))


@pytest.mark.parametrize(
    ("sources", "targets", "expected"),
    [
        (("t1", "t2"), ("t1c", "t2f"), ("t1", "t2")),
        (("t1", "t2"), ("t2f",), ("t2",)),
        (("t2", "t1c"), ("t2f", "t1", "swi"), ("t2", "t1c", "t2")),
        (("t1",), ("t2", "t1c", "t2f"), ("t1", "t1", "t1")),
    ],
)
def test_a_target_is_shown_as_the_source_of_its_weighting_or_the_first(sources, targets, expected):
    assert copied(sources, targets) == expected


def test_named_copies_are_taken():
    assert copied(("t1", "t2"), ("t1c", "t2f"), ("t2", "t1")) == ("t2", "t1")


@pytest.mark.parametrize("copies", [("t1",), ("t1", "t2", "t2"), ("t1", "t2f")])
def test_copies_that_do_not_fit_are_refused(copies):
    with pytest.raises(UserError, match=r"one of the sources .* for each of the targets"):
        copied(("t1", "t2"), ("t1c", "t2f"), copies)
