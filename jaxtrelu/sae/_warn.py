"""Warnings that point at the user's line, through however many of the library's own."""

import os
import sys
import warnings
from pathlib import Path

_LIBRARY = str(Path(__file__).parent.parent) + os.sep


def warn(sentence: str) -> None:
    """Warns of the innermost line that is not the library's own.

    `skip_file_prefixes` of `warnings.warn` does this from Python 3.12 on; it can take its place
    when 3.11 goes.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, stacklevel=level)
