"""`jaxtrelu sae sweep`: several models at once, and what L0 costs in explained variance."""

import argparse
import functools
import json
import math
from typing import TYPE_CHECKING, Any

from jaxtrelu import _files
from jaxtrelu._cli import UserError
from jaxtrelu._cli.parser import add_number
from jaxtrelu._cli.sae import train
from jaxtrelu._cli.sae.data import open_data

if TYPE_CHECKING:
    from jaxtrelu.sae import Sweep

_DESCRIPTION = """\
Trains one autoencoder (with --targets, one transcoder) for each combination of --l0 and --seeds,
all at once in one program and on the same batches, and draws explained variance against L0 on the
rows that were kept aside."""

_EPILOG = """\
Writes a model for each run (l0-16-seed-0/sae.safetensors), sweep.json, sweep.csv and a figure (PNG
and SVG) into the output folder, and keeps two checkpoints of all of them there.

  jaxtrelu sae sweep activations.npy --features 4096 --l0 8 16 32 64 --seeds 0 1 2"""


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser."""
    parser = subparsers.add_parser(
        "sweep",
        help="train several at once: L0 against explained variance",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_data(parser)
    train.add_pairs(parser)
    add = functools.partial(add_number, parser)
    text = "features of each dictionary"
    add("--features", int, None, text, low=1, high=train.INT32, shown="256, or --start's")
    add("--l0", float, [5.0, 10.0, 20.0], "mean numbers of open features to reach")
    add("--seeds", int, [0], "of the weights", low=0, high=2**63 - 1)
    add("--steps", int, 2500, "optimiser steps", low=1, high=train.INT32)
    train.add_start(parser)
    train.add_recipe(parser)
    train.add_run(parser, "results/sweep")


def run(args: argparse.Namespace) -> int:
    """Trains, writes and prints."""
    folder = _files.check_folder(args.output)

    from jaxtrelu import sae
    from jaxtrelu._cli.console import progress
    from jaxtrelu._cli.sae import results
    from jaxtrelu.sae._pairs import Pairs
    from jaxtrelu.sae._train import rows_of, with_batches_for

    start = train.open_start(args)
    for l0 in args.l0:
        if not 0 < l0 < args.features:
            raise UserError(
                f"--l0 should be between 0 and the number of --features ({args.features}), but is "
                f"{l0:g}."
            )
    rows = rows_of(open_data(args.data, 0, args.held_out), 0, None, args.targets)
    train.check_start(start, rows)
    recipe = train.recipe_of(args, start)
    if args.recipe is None and args.batch_size is None:
        recipe = with_batches_for(rows, recipe)
    with progress(args.steps, "training") as bar:
        seen = 0

        def on_step(step: int, entry: dict[str, float] | None) -> None:
            nonlocal seen
            if not seen and step > 1:
                bar.log(f"going on from step {step - 1:,}")
            bar.advance(step - seen, f"mean L0 {entry['l0']:.1f}" if entry else None)
            seen = step

        found = sae.sweep(
            rows,
            features=args.features,
            l0=args.l0,
            seeds=args.seeds,
            steps=args.steps,
            recipe=recipe,
            start=start,
            skip=args.skip or None,
            checkpoint_folder=folder / "checkpoints",
            checkpoint_every=args.checkpoint_every,
            fresh=args.fresh,
            on_step=on_step,
        )
        if not seen:
            bar.log(train.FINISHED.format(args.steps))
    data = {"data": rows.name}
    if isinstance(rows, Pairs):
        data["targets"] = rows.targets_name
    contents: dict[str, bytes | str] = {
        "sweep.json": json.dumps({**data, "runs": _plain(found)}, indent=1) + "\n",
        "sweep.csv": found.to_csv(),
        **results.draw_sweep(found),
    }
    paths = []
    for model, target, seed in zip(found.models, found.targets, found.seeds, strict=True):
        name = f"l0-{target:g}-seed-{seed}"
        paths += sae.save(model, folder / name / "sae.safetensors")
    paths += _files.write_files(folder, contents)
    results.show_sweep(found, rows.name, data.get("targets"))
    for path in paths:
        print(path)
    return 0


def _plain(found: "Sweep") -> list[dict[str, Any]]:
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        for line in found.table()
    ]
