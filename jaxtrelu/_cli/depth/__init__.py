"""`jaxtrelu depth`: how many zeros a deep net may start with, and what a ceiling does for it."""

import argparse
import datetime
import os
import platform
import sys
from typing import Any

from jaxtrelu import _files
from jaxtrelu._cli import datasets
from jaxtrelu._cli.depth import settings

HUGE_PAGES = True

_DESCRIPTION = """\
Trains plain deep nets from initialisations on the edge of chaos: ReLU; 'shift' with a threshold for
each share of zeros; and the same with the ceiling at which the variance map has a wanted slope V'
(Price et al., ICLR 2024). Measures variances and gradients layer by layer before training, and
holds them against the formulas of jaxtrelu.theory."""

_EPILOG = """\
Writes depth.json and two figures (PNG and SVG) into the output folder, and there each configuration
into runs/ as soon as it is trained: a run that was killed goes on with what is missing.

  jaxtrelu depth                            # depth 30, width 100: see docs/initialisation.md
  jaxtrelu depth --quick                    # seconds, to see what it makes
  jaxtrelu depth --depth 100 --width 300 --epochs 0     # the formulas alone, at the published size
  jaxtrelu depth --sparsity 0.85 --slope 0.5 0.6 0.7 --output results/slopes
  jaxtrelu depth --optimiser sgd --epochs 2000 --sparsity 0.85 --seeds 2 --output results/sgd"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "depth",
        help="train deep sparse nets with and without a ceiling; heat map",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets.add_data(parser)
    parser.add_argument(
        "--output",
        default="results/depth",
        metavar="DIR",
        help="folder for the results (default: results/depth)",
    )
    settings.add_arguments(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="train again what an earlier run has finished"
    )


def run(args: argparse.Namespace) -> int:
    """Checks everything that can be checked, then measures, trains, writes and prints."""
    agreed = settings.from_arguments(args)
    folder = _files.check_folder(args.output)
    dataset = datasets.load(args.data)
    wanted = settings.configurations(agreed)
    settings.check_size(agreed, len(wanted), dataset)

    # Before the long work, so that what is missing shows now.
    from jaxtrelu._cli import console
    from jaxtrelu._cli.depth import experiment, figures, results

    with console.progress(experiment.work(agreed, wanted), "depth") as bar:
        measured, found = experiment.run(dataset, agreed, wanted, folder, args.fresh, bar)

    records = results.records(wanted, found, measured)
    command = settings.command(agreed, args.data)
    title = f"{dataset.name}, {agreed.depth} layers of {agreed.width}"
    contents: dict[str, bytes | str] = {
        "depth.json": results.document(records, found, measured, agreed, _about(dataset, command)),
        **figures.draw(wanted, records, measured, title, trained=bool(found)),
    }
    # Files first: what can go wrong with the terminal must not cost the results.
    paths = _files.write_files(folder, contents)
    terminal = console.out()
    results.show(terminal, records, agreed, dataset.name)
    for path in paths:
        terminal.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 0


def _about(dataset: datasets.Dataset, command: str) -> dict[str, Any]:
    """What was trained on what, when, and how to have it again, for the JSON."""
    import jax
    import optax

    rows, features = dataset.features.shape
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "data": dataset.name,
        "rows": rows,
        "features": features,
        "classes": dataset.classes,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "device": jax.devices()[0].device_kind,
        "threads": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
    }
