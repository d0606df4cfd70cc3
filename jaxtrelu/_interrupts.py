"""Ctrl-C while the command line is being loaded, which takes a second or two.

In a process of the command line, and in no other, it ends the process without a word from the
import of this module until the command takes signals over (`_cli.process.leaving_on_signals`).
Python's own way is a traceback out of whatever is being imported, and some of that takes the
exception for an error of its own.
"""

import signal
import sys
from itertools import pairwise
from pathlib import Path


def _is_command_line() -> bool:
    """True where the process is `jaxtrelu ...` or `python -m jaxtrelu ...`, loaded or not yet."""
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":  # until Python has found the module
        given = sys.orig_argv
        return "-mjaxtrelu" in given or ("-m", "jaxtrelu") in pairwise(given)
    return script != "" and (
        Path(script).name in ("jaxtrelu", "jaxtrelu.exe")
        or Path(script).resolve() == Path(__file__).resolve().parent / "__main__.py"
    )


if _is_command_line() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
