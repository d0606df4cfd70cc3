"""`jaxtrelu compare`: the same network with one activation after the other, on real data."""

import argparse
import platform
from typing import Any

from jaxtrelu import _files
from jaxtrelu._cli import datasets
from jaxtrelu._cli.compare import settings

HUGE_PAGES = True

_DESCRIPTION = """\
Trains the same network with each activation and compares them: accuracy, sparsity, memory and
time. Every activation gets the same splits, the same initial weights, the same order of batches,
the same number of steps of Adam and the same candidate learning rates, from which it takes the
best on validation rows.

'shift', 'hard' and 'clamp' are the variants of thresholded ReLU; 'fixed' keeps the threshold at
--threshold, 'calibrated' sets one per layer, before each epoch of the first half, so that a share
of --sparsity of the gates is closed, and 'learned' trains one per unit from 0.1 (hard: with a
rectangular surrogate gradient of bandwidth 0.5)."""

_EPILOG = """\
Writes compare.csv, compare.json and figures (PNG and SVG) into the output folder; one of them shows
the networks trained with relu and gelu after their activations were exchanged for FATReLU,
calibrated layer by layer to 60 to 98 % zeros.

  jaxtrelu compare
  jaxtrelu compare --data wine --activations gelu shift-learned hard-calibrated
  jaxtrelu compare --data mine.npz --sparsity 0.9 --output results/mine"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command and its options."""
    parser = subparsers.add_parser(
        "compare",
        help="train one network with each activation on real data; table and figures",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets.add_data(parser)
    parser.add_argument(
        "--output",
        default="results/compare",
        metavar="DIR",
        help="folder for the table and the figures (default: results/compare)",
    )
    settings.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Checks everything that can be checked, then trains, writes and prints."""
    agreed = settings.from_arguments(args)
    folder = _files.check_folder(args.output)
    dataset = datasets.load(args.data)
    settings.check_size(agreed, dataset)

    # Before the long work, so that what is missing shows now.
    from jaxtrelu._cli import console
    from jaxtrelu._cli.compare import experiment, figures, results

    with console.progress(experiment.work(agreed), "compare") as bar:
        outcomes = experiment.run(dataset, agreed, bar)

    records = results.records(outcomes, agreed)
    contents: dict[str, bytes | str] = {
        "compare.csv": results.to_csv(records),
        "compare.json": results.to_json(records, outcomes, agreed, _about(dataset)),
        **figures.draw(outcomes, records, dataset.name),
    }
    # Files first: what can go wrong with the terminal must not cost the results.
    paths = _files.write_files(folder, contents)
    terminal = console.out()
    results.show(terminal, records, agreed, dataset)
    for path in paths:
        terminal.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 0


def _about(dataset: datasets.Dataset) -> dict[str, Any]:
    """What was compared on what, for the JSON."""
    import flax
    import jax
    import optax

    rows, features = dataset.features.shape
    return {
        "data": dataset.name,
        "rows": rows,
        "features": features,
        "classes": dataset.classes,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "device": jax.devices()[0].device_kind,
    }
