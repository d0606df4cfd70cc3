"""`jaxtrelu calibrate`: thresholds for a wanted share of zeros, from a file of pre-activations."""

import argparse
import json

from jaxtrelu import _files
from jaxtrelu._cli import UserError
from jaxtrelu._cli.parser import Number, add_number
from jaxtrelu._cli.style import VARIANTS

_METHODS = ("quantile", "sketch", "gaussian")
_KINDS = ("json", "npz")

_DESCRIPTION = """\
Finds the threshold at which a wanted share of pre-activations is closed, and reports the share that
it reaches on rows which were held out. FILE is a .npy or .npz file of floating-point numbers, a row
an example, channels along the last axis; a .npy file may be larger than memory."""

_EPILOG = """\
quantile is exact and holds the rows in memory; sketch needs constant memory, has the error that it
reports, and needs datasketches; gaussian is mean + std * the normal quantile, right only where
pre-activations are normal, which the held-out share shows.

  jaxtrelu calibrate pre_activations.npy
  jaxtrelu calibrate layer.npz --array z --sparsity 0.8 0.9 --per-channel --output thresholds.npz
  jaxtrelu calibrate huge.npy --method sketch --sparsity 0.95 --output thresholds.json"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "calibrate",
        help="find thresholds for a wanted share of zeros",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="pre-activations, .npy or .npz")
    parser.add_argument("--array", metavar="NAME", help="which array of an .npz file with several")
    parser.add_argument(
        "--sparsity",
        type=Number("--sparsity", float),
        nargs="+",
        metavar="X",
        default=[0.8],
        help="wanted shares of zeros, between 0 and 1 (default: 0.8)",
    )
    parser.add_argument(
        "--method", choices=_METHODS, default="quantile", help="how (default: quantile)"
    )
    parser.add_argument(
        "--per-channel", action="store_true", help="a threshold for each channel, not one for all"
    )
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="shift",
        help="which the thresholds are for; it has to have zeros (default: shift)",
    )
    add_number(
        parser, "--held-out", float, 0.2, "share of rows held out, 0 to 0.9", low=0, high=0.9
    )
    add_number(parser, "--seed", int, 0, "chooses the rows held out", low=0, high=2**63 - 1)
    parser.add_argument(
        "--output", metavar="FILE", help="file to write, .json or .npz (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Checks what can be checked, calibrates, writes and prints."""
    for value in args.sparsity:
        if not 0 < value < 1:
            raise UserError(f"--sparsity should be between 0 and 1, both left out, not {value:g}.")
    from jaxtrelu._primitive.variants import VARIANTS as TABLE

    if not TABLE[args.variant].has_zeros:
        raise UserError(
            f"--variant {args.variant} has no zeros, as it is {TABLE[args.variant].formula}: pass "
            f"{' or '.join(name for name in VARIANTS if TABLE[name].has_zeros)}."
        )
    path = None
    if args.output is not None:
        path = _files.check_file(args.output)
        if path.suffix.lower()[1:] not in _KINDS:
            kinds = " or ".join(f".{kind}" for kind in _KINDS)
            raise UserError(f"--output should end in {kinds}, but is {path}.")

    from jaxtrelu._cli.calibrate import data, report

    rows = data.Rows(args.file, args.array, args.held_out, args.seed)
    try:
        found = data.calibrate(
            rows, list(dict.fromkeys(args.sparsity)), args.method, args.per_channel
        )
    except ModuleNotFoundError as error:
        if error.name != "datasketches":
            raise
        raise UserError(
            "--method sketch needs datasketches, which is not installed: "
            "pip install 'jaxtrelu[calibration]'."
        ) from None
    except ValueError as error:
        raise UserError(f"{args.file}: {error}") from None
    summary = report.summary(rows, found, args)
    if path is not None:
        if path.suffix.lower() == ".npz":
            _files.write_file(path, report.to_npz(found, args.variant))
        else:
            _files.write_file(path, json.dumps(summary, indent=1) + "\n")
    report.show(summary)
    if path is not None:
        print(path)
    return 0
