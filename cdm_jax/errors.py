"""The one exception whose text is meant for the person at the terminal."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what was got, what is allowed and what to do.

    The command line prints it as one line, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is spelled most alike, as a question to append; or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
