"""`jaxtrelu sae report`: one HTML file on a model, to look at in a browser."""

import argparse
import csv
import re
from pathlib import Path
from typing import Any

from jaxtrelu import _files
from jaxtrelu._cli import UserError
from jaxtrelu._cli.parser import add_number
from jaxtrelu._cli.sae.data import add_model_and_data, open_data

_DESCRIPTION = """\
Writes one HTML file that needs no network and no server: the figures, the curves of the training
(from history.csv beside the model), thresholds against how often features are open, and a list of
all features to sort and to filter, each with its histogram, the rows in which it is largest and its
nearest decoder rows."""

_EPILOG = """\
  jaxtrelu sae report results/sae patches
  jaxtrelu sae report model.safetensors digits.npy --rows-are-images 8x8
  jaxtrelu sae report model.safetensors activations.npy --labels tokens.txt --output look.html"""


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML file to look at a model's features in",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_and_data(parser)
    parser.add_argument(
        "--rows-are-images",
        metavar="HxW[xC]",
        help="draw rows as images of this height and width, with 1 or 3 channels",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="a text file whose lines say what the rows are"
    )
    add_number(
        parser, "--rows", int, 50_000, "rows to look at, about, from all over the data", low=1,
        high=2**31 - 1,
    )  # fmt: skip
    parser.add_argument("--title", help="of the page (default: from the name of the data)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="report.html",
        help="the file to write (default: report.html)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    target = _files.check_file(args.output)

    from jaxtrelu import sae
    from jaxtrelu._cli.console import progress

    shape = _image_shape(args.rows_are_images)
    labels = None if args.labels is None else _lines(args.labels)
    model = sae.load(args.model)
    data = open_data(args.data)
    if shape is None and args.data == "patches":
        shape = 2 * (round(data.dimension**0.5),)
    with progress(2 * min(args.rows, len(data)), "looking at the rows") as bar:
        path = sae.report(
            model,
            data,
            target,
            targets=args.targets,
            image_shape=shape,
            labels=labels,
            history=_history(Path(args.model)),
            title=args.title,
            rows=args.rows,
            on_rows=bar.advance,
        )
    print(path)
    return 0


def _image_shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+x\d+(x[13])?", text):
        raise UserError(
            "--rows-are-images should be a height and a width, such as 28x28, or with channels, "
            f"such as 32x32x3, but is {text!r}."
        )
    return tuple(map(int, text.split("x")))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"there is no file {path!r}.") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path!r} is no text in UTF-8: --labels takes one line for each row."
        ) from None


def _history(model: Path) -> dict[str, list[float]] | None:
    """The training's history, where `jaxtrelu sae train` left it beside the model."""
    path = (model if model.is_dir() else model.parent) / "history.csv"
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            names, *rows = csv.reader(stream)
            columns = zip(*(map(float, row) for row in rows), strict=True)
            return dict(zip(names, map(list, columns), strict=True))
    except (OSError, ValueError):  # none there, or somebody else's
        return None
