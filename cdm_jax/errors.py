"""The one exception whose text is meant for the person at the terminal."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping


class UserError(Exception):
    """Something the user can mend: says what was got, what is allowed and what to do.

    The command line prints it as one line, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most alike, as a question to append; or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Says which modality, patient or file a `UserError` from within is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


@contextlib.contextmanager
def collected(failures: dict[str, UserError], subject: str) -> Iterator[None]:
    """Keeps what is wrong with a subject for `report_failures`, so that the others go on."""
    try:
        yield
    except UserError as error:
        failures[subject] = error


def report_failures(
    failures: Mapping[str, UserError], total: int, say: Callable[[str], None]
) -> None:
    """Lists at the end of a cohort of so many whom it could not be done for; all others are done.

    Raises:
        UserError: There are any. A single subject's is its own.
    """
    if not failures:
        return
    if total == 1:
        raise next(iter(failures.values()))
    for subject, error in failures.items():
        say(f"failed: {subject}: {error}")
    raise UserError(
        f"{len(failures)} of {total} subjects failed ({', '.join(failures)}), all others are done; "
        f"the first because {next(iter(failures.values()))}"
    )
