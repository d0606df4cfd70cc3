"""The argument parser, put together from the commands."""

import argparse
import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import NoReturn

from jaxtrelu.cli import process
from jaxtrelu.cli.errors import UserError

# In the order of `--help`. One module of this package each; see the package's docstring.
COMMANDS = ("compare", "sae", "plot", "info")


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one sentence, like every other error of the command line."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; see {self.prog} --help.")


def load(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"jaxtrelu.cli.{command}")


def build() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="jaxtrelu",
        description="Thresholded ReLU for JAX: compare it on real data, plot it, inspect it.",
        epilog=f"{process.HELP} 'jaxtrelu COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"jaxtrelu {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        load(command).add_parser(subparsers)
    return parser


def _version() -> str:
    try:
        return version("jaxtrelu")
    except PackageNotFoundError:
        return "(not installed)"
