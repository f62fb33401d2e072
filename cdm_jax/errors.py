"""The one exception whose text is meant for the person at the terminal."""


class UserError(Exception):
    """Something the user can mend: says what was got, what is allowed and what to do.

    The command line prints it as one line, without a traceback.
    """
