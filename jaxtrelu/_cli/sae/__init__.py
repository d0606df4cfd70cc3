"""`jaxtrelu sae`: trains sparse autoencoders, judges and shows them, converts files."""

import argparse
import errno
import importlib
import re
import sys
import warnings
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
        command.prepare(args)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named, with what goes wrong in it as one sentence."""
    with warnings.catch_warnings():
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
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
            raise  # of stdout: files say it in their own words
        if isinstance(error, MemoryError) and not str(error):
            raise  # Python's own
        raise UserError(_in_options(_message(error))) from None


def _message(error: Exception) -> str:
    """What an exception says, without the number that the system has for it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror.lower()}."


def _load(command: str) -> Any:
    return importlib.import_module(f"jaxtrelu._cli.sae.{command}")


# What a message of the library calls an argument, and what it is on the command line. Longer ones
# first.
_OPTIONS = {
    "`initial_threshold` of a recipe": "--threshold",
    "`initial_norm` of a recipe": "--initial-norm",
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
    "`targets`": "--targets",
    "`skip`": "--skip",
    "`start`": "the model of --start",
    "x should have one example per row": "DATA should have one example per row",
    "pass format='dictionary_learning'": "pass --to dictionary_learning",
    "pass format='gemma_scope_2' or 'saelens'": "pass --to gemma_scope_2 or saelens",
    "a recipe with another `input_scaling` or `initial_norm`": "another --recipe or --initial-norm",
    "a recipe with another `input_scaling`": "another --recipe",
    "`screen`": "--screen",
    "`sparse` is False": "--dense asks for them",
    "Pass a smaller learning rate": "Pass a smaller --learning-rate",
    "Pass a smaller batch size": "Pass a smaller --batch-size",
    "Pass fewer features, or a smaller batch size": (
        "Pass a smaller number of --features, or a smaller --batch-size"
    ),
    "pass another folder": "pass another --output",
    "or another folder, or fresh=True, to start afresh": "or another --output, or --fresh",
    "a larger coefficient brings": "a larger --coefficient brings",
    "or a larger learning rate": "or a larger --learning-rate",
    "or a coefficient nearer": "or a --coefficient nearer",
    "Pass more steps, a larger L0, or another learning rate": (
        "Pass more --steps, a larger --l0, or another --learning-rate"
    ),
    "Pass a larger bandwidth, or larger batches": "Pass a larger --bandwidth or --batch-size",
    "pass more steps": "pass more --steps",
    "or another folder to start afresh": "or another --output to start afresh",
}


# What a setting is called where a checkpoint is of another run, and the option that it is.
_SETTINGS = {
    "target_l0": "--l0",
    "features": "--features",
    "steps": "--steps",
    "seed": "--seed",
    "data seed": "--seed of the rows",
    "rows kept aside": "--held-out",
    "sparse": "skipping zeros (without --dense)",
    "screen": "--screen",
    "skip": "--skip",
    "start": "the model of --start",
    "recipe.name": "--recipe",
    "recipe.batch_size": "--batch-size",
    "recipe.learning_rate": "--learning-rate",
    "recipe.surrogate": "the surrogate (--bandwidth)",
    "recipe.initial_threshold": "--threshold",
    "recipe.initial_norm": "--initial-norm",
    "recipe.coefficient": "--coefficient",
    "recipe.resample_every": "--resample-every",
    "runs": "what is combined (--l0, λ, --seeds)",
}


def _in_options(message: str) -> str:
    for inside, outside in _OPTIONS.items():
        message = message.replace(inside, outside)
    start, other, differing = message.partition(" belong to another run: ")
    for inside, outside in _SETTINGS.items() if other else ():
        name = rf"(^|; ){re.escape(inside)} is "
        differing = re.sub(name, rf"\g<1>{outside} is ", differing)
    message = start + other + differing
    if message.startswith("`bandwidth` of "):
        message = "--bandwidth" + message[message.index(" should") :].partition(". Pass")[0] + "."
    return message


def _note(message: Any, *_: Any, **__: Any) -> None:
    print(f"jaxtrelu: note: {_in_options(str(message))}", file=sys.stderr)
