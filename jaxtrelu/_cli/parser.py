"""The argument parser, put together from the commands, and the numbers that their options take."""

import argparse
import dataclasses
import difflib
import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar, NoReturn

from jaxtrelu._cli import UserError, process

# In the order of `--help`. See the package's docstring.
COMMANDS = ("compare", "depth", "sae", "calibrate", "plot", "info")


@dataclasses.dataclass(frozen=True)
class Number:
    """The `type` of an option that takes numbers: reads one, and refuses it outside its limits.

    Attributes:
        option: what the user calls it, such as "--seed".
        kind: int or float.
        low: the smallest number that is accepted; None: any number, even NaN.
        high: the largest one; None: none is too large.
    """

    option: str
    kind: type[int] | type[float]
    low: float | None = None
    high: float | None = None

    def __call__(self, word: str) -> int | float:
        """Called by argparse. Raises UserError for a number outside the limits."""
        try:
            value = self.kind(word)
        except ValueError:
            # argparse's own words, without the space that `Parser.parse_args` may have added.
            reason = f"invalid {self.kind.__name__} value: {word.strip()!r}"
            raise argparse.ArgumentTypeError(reason) from None
        if self.low is None:
            return value
        if self.high is None:
            if not self.low <= value:
                raise UserError(f"{self.option} should be at least {self.low}, not {value}.")
        elif not self.low <= value <= self.high:  # so NaN is refused, too
            low, high, given = map(self._text, (self.low, self.high, value))
            raise UserError(f"{self.option} should be from {low} to {high}, but is {given}.")
        return value

    def _text(self, value: float) -> str:
        return str(value) if self.kind is int else f"{value:g}"


def add_number(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    option: str,
    kind: type[int] | type[float],
    default: float | list[float] | None,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    shown: object = None,
) -> None:
    """Adds an option that takes a number, or several of them if `default` is a list.

    `shown` is what the help says is the default, where that is another than `default`.
    """
    several = isinstance(default, list)
    if shown is None:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
    parser.add_argument(
        option,
        type=Number(option, kind, low, high),
        nargs="+" if several else None,
        metavar="N" if kind is int else "X",
        default=default,
        help=f"{text} (default: {shown})",
    )


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one sentence, and takes every negative number for a number.

    Attributes:
        without_command: of a parser with commands of its own, the one that is meant where the words
            begin with none of them.
        commands: their names.
    """

    without_command: str | None = None
    commands: Sequence[str] = ()

    # Of all commands. No option takes a number in one command and a word in another.
    _number_options: ClassVar[set[str]] = set()

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; see {self.prog} --help.")

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Adds an option, and remembers those that take numbers."""
        action = super().add_argument(*args, **kwargs)
        if isinstance(action.type, Number):
            self._number_options.update(action.option_strings)
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Any:
        """As usual, of the command that is meant where none is named. Its parent calls this.

        What is not known is an error here, and not of the parent, whose help does not explain it.
        """
        if self.without_command is not None and args is not None:
            named = args and args[0] in (*self.commands, "-h", "--help")
            args = args if named else [self.without_command, *args]
        found, surplus = super().parse_known_args(args, namespace, **options)
        if surplus:
            self.error(f"unrecognized arguments: {' '.join(map(str.strip, surplus))}")
        return found, surplus

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """As usual, except that -1e-3, -inf and -nan after an option for numbers are its values.

        Before Python 3.13 argparse takes -1e-3 for an option; the other two it does in all. What
        begins with a space it takes for a value, and `int` and `float` do not mind the space.
        """
        words: list[str] = []
        takes_numbers = False
        for word in args:
            if _is_number(word):
                word = f" {word}" if takes_numbers and word.startswith("-") else word
            elif word.startswith("-"):
                # argparse takes an option's beginning for the option.
                takes_numbers = len(word) > 2 and any(
                    option.startswith(word) for option in self._number_options
                )
            words.append(word)
        return super().parse_args(words, namespace)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_choice(name: str, known: Sequence[str]) -> str:
    """Returns the name of an activation if it is known, else raises UserError with a hint."""
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no activation {name!r}: {hint}known are {', '.join(known)}.")


def load(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"jaxtrelu._cli.{command}")


def build() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="jaxtrelu",
        description="Thresholded ReLU for JAX: compare it on real data, plot it, inspect it.",
        epilog=f"{process.HELP} 'jaxtrelu COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"jaxtrelu {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        load(command).add_parser(subparsers)
    return parser


def _version() -> str:
    try:
        return version("jaxtrelu")
    except PackageNotFoundError:
        return "(not installed)"
