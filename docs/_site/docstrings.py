"""Docstrings as the site shows them: examples are code; formulas MathML, which needs no script."""

import re

import griffe
from latex2mathml.converter import convert

_BLOCK = re.compile(r"^( *)\.\. math::\n((?:(?:\1 +.*)?\n)+?)(?=\1\S|\n|\Z)", re.MULTILINE)
# Lines of a session and what they print, to the next empty line.
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1.+)*", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def shown(text: str) -> str:
    """A docstring in the Markdown of the site."""
    text = _EXAMPLE.sub(_fenced, text)
    text = re.sub(r"^(\s*)Example:", r"\1Examples:", text, flags=re.MULTILINE)
    text = _BLOCK.sub(_block, text)
    return _INLINE.sub(_inline, text)


def _block(found: re.Match) -> str:
    formula = " ".join(found[2].split())
    return f"{found[1]}{convert(formula, display='block')}\n\n"


def _inline(found: re.Match) -> str:
    # In a span, or Markdown takes a formula at the beginning of a line for a block.
    return f"<span>{convert(' '.join(found[1].split()))}</span>"


def _fenced(found: re.Match) -> str:
    return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"


class Docstrings(griffe.Extension):
    """Rewrites each docstring before its sections are parsed."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for every object of the package, when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
