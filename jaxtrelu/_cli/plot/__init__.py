"""`jaxtrelu plot`: the function, its derivative and its antiderivative."""

import argparse
import math

from jaxtrelu import _files
from jaxtrelu._cli import UserError
from jaxtrelu._cli.parser import Number, add_number, check_choice
from jaxtrelu._cli.style import PEERS, VARIANTS

_KINDS = ("png", "svg", "pdf")
_MAX_THRESHOLDS = 8
_LARGEST = 1e6

_DESCRIPTION = """\
Draws thresholded ReLU, its derivative and its antiderivative: one row per variant, one curve per
threshold; variants that share their derivative share its axes. Where a curve jumps, the full circle
is its value and the open one the limit that it does not reach: at x = θ the gate is closed. The
antiderivative is the continuous one that is 0 at θ (peers: at 0). At the jump of 'hard' the
derivative leaves out an impulse of weight θ."""

_EPILOG = """\
  jaxtrelu plot
  jaxtrelu plot --threshold -0.5 0.5 1.5 --variant shift hard --range -3 4 --output relu.svg
  jaxtrelu plot --variant shift --ceiling 1.5 --peers relu gelu --show"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "plot",
        help="draw the function, its derivative and its antiderivative",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--threshold",
        type=Number("--threshold", float),
        nargs="+",
        metavar="X",
        default=[1.0],
        help="thresholds θ (default: 1)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="variants, a row each (default: all)",
    )
    parser.add_argument(
        "--ceiling",
        type=Number("--ceiling", float),
        metavar="X",
        help="largest value of 'shift' (default: none)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="NAME",
        default=[],
        help=f"activations to draw behind, out of {', '.join(PEERS)} (prelu with slope 0.25)",
    )
    parser.add_argument(
        "--range",
        type=Number("--range", float),
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[-2.0, 3.0],
        help="range of x (default: -2 3)",
    )
    add_number(parser, "--points", int, 400, "samples per piece", low=2, high=100_000)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write, .png, .svg or .pdf (default: thresholded_relu.png, or none with "
        "--show)",
    )
    parser.add_argument("--show", action="store_true", help="show it on the screen")


def run(args: argparse.Namespace) -> int:
    """Checks everything that can be checked, then draws and writes or shows."""
    _check(args)
    path = None
    if args.output is not None or not args.show:
        path = _files.check_file("thresholded_relu.png" if args.output is None else args.output)
        if path.suffix.lower()[1:] not in _KINDS:
            kinds = ", ".join(f".{kind}" for kind in _KINDS)
            raise UserError(f"--output should end in {kinds}, but is {path}.")

    from jaxtrelu._cli import style
    from jaxtrelu._cli.plot import figure
    from jaxtrelu._primitive.variants import VARIANTS as TABLE
    from jaxtrelu.plot import _curves

    shapes = {
        variant: [
            _curves.thresholded(
                variant, threshold, args.ceiling if TABLE[variant].takes_ceiling else None
            )
            for threshold in dict.fromkeys(args.threshold)
        ]
        for variant in dict.fromkeys(args.variant)
    }
    peers = [figure.peer(name) for name in dict.fromkeys(args.peers)]
    limits = (args.range[0], args.range[1])
    with style.applied():
        screen = _screen() if args.show else None
        drawn = figure.draw(shapes, peers, limits, args.points, ceiling=args.ceiling, figure=screen)
        if path is not None:
            _files.write_file(path, style.to_bytes(drawn, path.suffix.lower()[1:]))
            print(f"wrote {path}")
        if args.show:
            from matplotlib import pyplot

            pyplot.show()
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for numbers that cannot be drawn."""
    low, high = args.range
    for option, values in (("--threshold", args.threshold), ("--range", args.range)):
        for value in values:
            if not (math.isfinite(value) and abs(value) <= _LARGEST):
                raise UserError(
                    f"{option} takes numbers from {-_LARGEST:g} to {_LARGEST:g}, but got {value:g}."
                )
    if high - low < 1e-3 * max(1, abs(low), abs(high)):
        raise UserError(f"--range should go from low to high, but is {low:g} {high:g}.")
    if len(set(args.threshold)) > _MAX_THRESHOLDS:
        raise UserError(
            f"--threshold takes at most {_MAX_THRESHOLDS} values, but got "
            f"{len(set(args.threshold))}: more curves than can be told apart."
        )
    if args.ceiling is not None:
        from jaxtrelu._primitive.variants import VARIANTS as TABLE

        if not any(TABLE[variant].takes_ceiling for variant in args.variant):
            raise UserError(f"--ceiling is for --variant shift, but got {' '.join(args.variant)}.")
        if not 0 < args.ceiling <= _LARGEST:
            raise UserError(
                f"--ceiling should be above 0 and at most {_LARGEST:g}, but is {args.ceiling:g}."
            )
    for name in args.peers:
        check_choice(name, PEERS)


def _screen():
    """An empty figure in a window. Raises UserError where there is no screen."""
    import matplotlib as mpl
    from matplotlib import pyplot

    try:
        interactive = mpl.backends.backend_registry.list_builtin(
            mpl.backends.BackendFilter.INTERACTIVE
        )
        figure = pyplot.figure()
    except (ImportError, RuntimeError):
        interactive, figure = [], None
    if figure is None or mpl.get_backend().lower() not in map(str.lower, interactive):
        raise UserError("there is no screen to show it on: pass --output FILE instead of --show.")
    return figure
