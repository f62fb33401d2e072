"""A process of its own that answers lines of JSON with lines of JSON."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Ask = Callable[[Any], Any]


@contextlib.contextmanager
def asked(
    command: Sequence[str], environment: Mapping[str, str], folder: str | None = None
) -> Iterator[Ask]:
    """Starts a process, and ends it afterwards by closing its standard input.

    Args:
      command: of the process.
      environment: of the process, as a whole.
      folder: in which it runs; this one where None.

    Yields:
      A function that asks it something and waits for the answer. It raises RuntimeError where the
      process has ended; what it said of that is on the standard error.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder
    ) as process:
        lines, answers = process.stdin, process.stdout
        assert lines and answers

        def ask(question: Any) -> Any:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(question), file=lines, flush=True)
            if not (answer := answers.readline()):
                raise RuntimeError(f"the process ended with status {process.wait()}")
            return json.loads(answer)

        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                lines.close()
