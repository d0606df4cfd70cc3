"""`jaxtrelu sae`: trains sparse autoencoders, judges and shows them, converts files."""

import argparse
import contextlib
import importlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from jaxtrelu._cli import UserError, process

HUGE_PAGES = True

_COMMANDS = ("train", "sweep", "eval", "report", "convert")
_DESCRIPTION = """\
Sparse autoencoders with JumpReLU and learned thresholds. Without the name of a command,
`jaxtrelu sae` trains."""
_EPILOG = """\
  jaxtrelu sae
  jaxtrelu sae train activations.npy --features 16384 --l0 64 --steps 50000 --output results/wide
  jaxtrelu sae eval results/wide/sae.safetensors activations.npy
  jaxtrelu sae report results/wide/sae.safetensors activations.npy --output report.html
  jaxtrelu sae convert results/wide/sae.safetensors for_saelens --to saelens

'jaxtrelu sae COMMAND --help' explains a command."""


def add_parser(subparsers: Any) -> None:
    """Adds the command and its own commands to the parser."""
    parser = subparsers.add_parser(
        "sae",
        help="train a sparse autoencoder whose thresholds learn; evaluate, show and convert models",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = parser.add_subparsers(dest="sae_command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        _load(command).add_parser(own)
    parser.without_command, parser.commands = "train", _COMMANDS


def prepare(args: argparse.Namespace) -> None:
    """Joins other processes, where the command has any."""
    command = _load(args.sae_command)
    if hasattr(command, "prepare"):
        with _leaving_on_interrupt():
            command.prepare(args)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named, with what goes wrong in it as one sentence."""
    with _leaving_on_interrupt(), warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _note
        try:
            return _run_command(args)
        except UserError as error:
            if getattr(args, "coordinator", None) is not None:
                process.leave(str(error))
            raise


def _run_command(args: argparse.Namespace) -> int:
    try:
        return _load(args.sae_command).run(args)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(_in_options(str(error))) from None


def _load(command: str) -> Any:
    return importlib.import_module(f"jaxtrelu._cli.sae.{command}")


# What a message of the library calls an argument, and what it is on the command line. Longer ones
# first.
_OPTIONS = {
    "`initial_threshold` of a recipe": "--threshold",
    "`learning_rate` of a recipe": "--learning-rate",
    "`batch_size` of a recipe": "--batch-size",
    "`coefficient` of a recipe": "--coefficient",
    "`resample_every` of a recipe": "--resample-every",
    "`target_l0`": "--l0",
    "`l0`": "--l0",
    "`seeds`": "--seeds",
    "`features`": "--features",
    "`steps`": "--steps",
    "`held_out`": "--held-out",
    "`image_shape`": "--rows-are-images",
    "Pass a smaller learning rate": "Pass a smaller --learning-rate",
    "Pass a smaller batch size": "Pass a smaller --batch-size",
    "Pass fewer features, or a smaller batch size": (
        "Pass a smaller number of --features, or a smaller --batch-size"
    ),
    "pass another folder": "pass another --output",
    "or another folder, or fresh=True, to start afresh": "or another --output, or --fresh",
    "a larger coefficient brings": "a larger --coefficient brings",
    "or a larger learning rate": "or a larger --learning-rate",
    "Pass a larger bandwidth, or larger batches": "Pass a larger --bandwidth or --batch-size",
    "pass more steps": "pass more --steps",
    "or another folder to start afresh": "or another --output to start afresh",
}


def _in_options(message: str) -> str:
    for inside, outside in _OPTIONS.items():
        message = message.replace(inside, outside)
    if message.startswith("`bandwidth` of "):
        message = "--bandwidth" + message[message.index(" should") :].partition(". Pass")[0] + "."
    return message


def _note(message: Any, *_: Any, **__: Any) -> None:
    print(f"jaxtrelu: note: {_in_options(str(message))}", file=sys.stderr)


#: What ends a run, and what is then said.
_SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@contextlib.contextmanager
def _leaving_on_interrupt() -> Iterator[None]:
    """Ends the process at Ctrl-C and SIGTERM with one line and status 130 or 143, at any moment.

    An exception would have to find its way out through compilers, threads and half-built state, and
    did not always. Nothing is lost: files are put in place whole, and a lock dies with its process.
    """

    def leave(number: int, frame: Any) -> None:
        process.end(_SIGNALS[number], 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # somebody else's program, who sees to interrupts
        return
    before = {number: signal.signal(number, leave) for number in _SIGNALS}
    try:
        yield
    finally:
        # In a process of its own it lasts to the end: shutting down can be interrupted, too.
        if not process.is_own_command_line():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
