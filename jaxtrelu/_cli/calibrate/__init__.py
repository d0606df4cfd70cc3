"""`jaxtrelu calibrate`: thresholds from a file of pre-activations, or of a whole network."""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxtrelu import _files
from jaxtrelu._cli import UserError
from jaxtrelu._cli.parser import Number, add_number
from jaxtrelu._cli.style import VARIANTS

_METHODS = ("quantile", "sketch", "gaussian")
_KINDS = ("json", "npz")
_SHARES = [0.8]
# Which options are for what stands in FILE; all others are for both.
_OF_ARRAYS = ("method", "weights")
_OF_NETWORKS = ("data", "forward", "part", "layers", "rows", "save")

_DESCRIPTION = """\
Finds the threshold at which a wanted share of pre-activations is closed, and reports the share that
it reaches on rows which were held out. FILE is a .npy or .npz file of floating-point numbers, a row
an example, channels along the last axis; a .npy file may be larger than memory.

With --model, FILE is the folder of an Orbax checkpoint of a Flax NNX model. Each of the model's
activations becomes a thresholded ReLU, layer by layer on the rows of --data, as
jaxtrelu.nnx.swap_activations does it; reported are each layer's zeros on held-out rows."""

_EPILOG = """\
quantile is exact and holds the rows in memory; sketch needs constant memory, has the error that it
reports, and needs datasketches; gaussian is mean + std * the normal quantile, right only where
pre-activations are normal, which the held-out share shows.

The checkpoint is a state, a dictionary of one, or a part of what was saved; of the numbered steps
of a CheckpointManager the last is read. --model runs the code that it names.

  jaxtrelu calibrate pre_activations.npy
  jaxtrelu calibrate layer.npz --array z --sparsity 0.8 0.9 --per-channel --output thresholds.npz
  jaxtrelu calibrate huge.npy --method sketch --sparsity 0.95 --output thresholds.json
  jaxtrelu calibrate z.npy --error 0.05 --weights w_out.npy --variant hard
  jaxtrelu calibrate checkpoints/ --model net:build --data rows.npy --output thresholds.json
  jaxtrelu calibrate checkpoints/ --model net.py:build --data rows.npy --error 0.1 --save sparse/"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "calibrate",
        help="find thresholds for a wanted share of zeros",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", metavar="FILE", help="pre-activations, .npy or .npz; or a checkpoint's folder"
    )
    parser.add_argument("--array", metavar="NAME", help="which array of an .npz file with several")
    parser.add_argument(
        "--sparsity",
        type=Number("--sparsity", float),
        nargs="+",
        metavar="X",
        help="wanted shares of zeros, between 0 and 1 (default: 0.8)",
    )
    parser.add_argument(
        "--error",
        type=Number("--error", float),
        nargs="+",
        metavar="X",
        help="instead: wanted relative errors of the next layer's output, between 0 and 1",
    )
    parser.add_argument(
        "--per-channel", action="store_true", help="a threshold for each channel, not one for all"
    )
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        help="which the thresholds are for; it has to have zeros (default: shift; of a network "
        "hard, which leaves open what is open)",
    )
    add_number(
        parser, "--held-out", float, 0.2, "share of rows held out, 0 to 0.9", low=0, high=0.9
    )
    add_number(parser, "--seed", int, 0, "chooses the rows held out", low=0, high=2**63 - 1)
    parser.add_argument(
        "--output", metavar="FILE", help="file to write, .json or .npz (default: none)"
    )
    arrays = parser.add_argument_group("of pre-activations")
    arrays.add_argument("--method", choices=_METHODS, help="how (default: quantile)")
    arrays.add_argument(
        "--weights",
        metavar="FILE",
        help="for --error: weights of the next layer (channels, outputs), .npy or .npz",
    )
    network = parser.add_argument_group("of a network")
    network.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="what builds the NNX model, without arguments; a module, or a .py file",
    )
    network.add_argument("--data", metavar="FILE", help="rows to send through it, .npy or .npz")
    network.add_argument(
        "--forward",
        metavar="MODULE:FUNCTION",
        help="(model, rows) -> output, without jit around activations (default: model(rows))",
    )
    network.add_argument(
        "--part",
        metavar="NAME",
        help="where in the checkpoint the model is, such as params or state.model (default: found)",
    )
    network.add_argument(
        "--layers",
        nargs="+",
        metavar="PATTERN",
        help="which activations, as the report names them, such as 'blocks.*.gate' (default: all)",
    )
    add_number(
        network, "--rows", int, None, "rows used at most, held out or not", low=2, shown=2000
    )
    network.add_argument(
        "--save",
        metavar="DIR",
        help="folder to save the state of the exchanged model to, by Orbax (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Checks what can be checked, calibrates, writes and prints."""
    _check(args)
    path = None
    if args.output is not None:
        path = _files.check_file(args.output)
        if path.suffix.lower()[1:] not in _KINDS:
            kinds = " or ".join(f".{kind}" for kind in _KINDS)
            raise UserError(f"--output should end in {kinds}, but is {path}.")
    return _of_arrays(args, path) if args.model is None else _of_a_network(args, path)


def _check(args: argparse.Namespace) -> None:
    """What the options say together. Fills in what was left out."""
    if args.sparsity is not None and args.error is not None:
        raise UserError("--sparsity and --error are two ways to say what is wanted: pass one.")
    if args.error is None:
        args.sparsity = list(dict.fromkeys(args.sparsity or _SHARES))
    else:
        args.error = list(dict.fromkeys(args.error))
        if args.per_channel:
            raise UserError("--error finds one threshold for all channels: no --per-channel.")
    for name in ("sparsity", "error"):
        for value in getattr(args, name) or ():
            if not 0 < value < 1:
                raise UserError(
                    f"--{name} should be between 0 and 1, both left out, not {value:g}."
                )
    foreign = _OF_NETWORKS if args.model is None else _OF_ARRAYS
    for name in foreign:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name} is for a network: pass --model as well, which says how it is built."
                if args.model is None
                else f"--{name} is for a file of pre-activations: leave it out beside --model."
            )
    if args.model is None and Path(args.file).is_dir():
        raise UserError(
            f"{args.file} is a folder: for a checkpoint pass --model, which says how the model is "
            "built, and --data."
        )
    if args.variant is None:
        args.variant = "shift" if args.model is None else "hard"
    from jaxtrelu._primitive.variants import VARIANTS as TABLE

    if not TABLE[args.variant].has_zeros:
        raise UserError(
            f"--variant {args.variant} has no zeros, as it is {TABLE[args.variant].formula}: pass "
            f"{' or '.join(name for name in VARIANTS if TABLE[name].has_zeros)}."
        )


def _of_arrays(args: argparse.Namespace, path: Path | None) -> int:
    if args.error is not None and (args.weights is None or args.method is not None):
        raise UserError(
            "--error needs --weights, those of the next layer, and does not go with --method."
        )
    if args.error is None and args.weights is not None:
        raise UserError("--weights is for --error, the wanted error of the layer that they are of.")
    args.method = args.method or ("quantile" if args.error is None else "error")
    from jaxtrelu._cli.calibrate import data, report

    rows = data.Rows(args.file, args.array, args.held_out, args.seed)
    try:
        if args.error is None:
            found = data.calibrate(rows, args.sparsity, args.method, args.per_channel)
        else:
            weights = data.open_array(args.weights, None)
            found = data.calibrate_to_error(rows, args.error, weights, args.variant)
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
    _write(path, summary, lambda: report.to_npz(found, args.variant))
    report.show(summary)
    return _say(path)


def _of_a_network(args: argparse.Namespace, path: Path | None) -> int:
    if args.data is None:
        raise UserError("--model needs --data: a file of rows to send through the network.")
    wanted = args.sparsity or args.error
    folder = None
    if args.save is not None:
        folder = _files.check_folder(args.save)
        if folder.exists():
            raise UserError(f"--save should be a folder that is not there yet, but {folder} is.")
        if len(wanted) > 1:
            raise UserError(f"--save is of one model: pass one number in place of {len(wanted)}.")
    # Before the long work, so that what is missing shows now.
    from jaxtrelu._cli.calibrate import network, report

    found = network.calibrate(args)
    summary = found.summary
    _write(path, summary, lambda: report.network_to_npz(summary, found.results))
    if folder is not None:
        network.save(folder, found.results[0].swapped.model)
    report.show_network(summary)
    return _say(path, folder)


def _write(path: Path | None, summary: dict[str, Any], to_npz: Any) -> None:
    if path is not None:
        npz = path.suffix.lower() == ".npz"
        _files.write_file(path, to_npz() if npz else json.dumps(summary, indent=1) + "\n")


def _say(*paths: Path | None) -> int:
    for path in paths:
        if path is not None:
            print(path)
    return 0
