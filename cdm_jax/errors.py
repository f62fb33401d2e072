"""The one exception whose text is meant for the person at the terminal."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


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
