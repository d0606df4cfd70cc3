"""`jaxtrelu sae eval`: figures of a model on rows that it was not trained on."""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxtrelu import _files
from jaxtrelu._cli.sae.data import add_model_and_data, open_data

_DESCRIPTION = """\
Prints the metrics of SAEBench's core evaluation that need no language model. On the data that the
model was trained on, only the rows count that were kept aside then; on other data, all of them."""


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser."""
    parser = subparsers.add_parser(
        "eval", help="metrics of a model on held-out rows", description=_DESCRIPTION
    )
    add_model_and_data(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write the figures, those of every feature included, in SAEBench's schema",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates, writes and prints."""
    target = None if args.json is None else _files.check_file(args.json)

    from jaxtrelu import sae
    from jaxtrelu._cli.console import progress
    from jaxtrelu._cli.sae import results
    from jaxtrelu.sae._train import judged_on

    model = sae.load(args.model)
    data = open_data(args.data)
    x, targets = judged_on(model, data, args.targets)
    with progress(len(x), "evaluating") as bar:
        found = sae.evaluate(model, x, targets=targets, on_rows=bar.advance)
    which = "all rows" if x is data else "the rows kept aside when it was trained"
    if target is not None:
        text = json.dumps(found.to_saebench(model), indent=1) + "\n"
        _files.write_file(target, text)
    title = f"{Path(args.model).name} on {which} of {data.name}"
    if args.targets is not None:
        title += f", targets {Path(args.targets).name}"
    results.show_evaluation(found, title, of_targets=args.targets is not None)
    if target is not None:
        print(target)
    return 0
