"""`jaxtrelu sae train`: trains a sparse autoencoder on image patches or a user's files.

With targets, a transcoder.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtrelu import _files
from jaxtrelu._cli import UserError, process
from jaxtrelu._cli.parser import add_number
from jaxtrelu._cli.sae.data import add_targets, open_data

if TYPE_CHECKING:
    from jaxtrelu.sae import Autoencoder, Recipe, Rows

_OF_AN_L0 = ("frequent_resampling",)  # which one has to be said
_RECIPES = ("short_run", *_OF_AN_L0, "gemma_scope", "gemma_scope_2", "anthropic_2025")
_FEATURES = 256
INT32 = 2**31 - 1  # features, examples and steps are counted in int32
_WRITING = 86400  # seconds that the first process may take for the results, while others wait
FINISHED = (
    "this run of {:,} steps was finished before, and nothing is trained: more --steps go on with "
    "it, --fresh begins anew"
)
_AGAIN = "start the same command in each of them again, and it goes on from the last checkpoint."

_DESCRIPTION = """\
Trains a sparse autoencoder with JumpReLU and learned thresholds, steering the sparsity coefficient
so that the mean number of open features reaches --l0. Killed at any moment, the same command goes
on from its last checkpoint and reaches the same result, bit for bit; with more --steps it extends a
finished run. With --targets it is a transcoder, which makes of each row of DATA its target."""

_EPILOG = """\
Writes sae.safetensors (the model, with every setting), sae.json, history.csv and two figures (PNG
and SVG) into the output folder, and keeps two checkpoints there.

  jaxtrelu sae train
  jaxtrelu sae train --features 4096 --l0 16 --output results/wide
  jaxtrelu sae train activations.npy --recipe gemma_scope --features 16384 --l0 64 --steps 50000
  jaxtrelu sae train mlp_in --targets mlp_out --features 16384 --l0 64"""


def add_parser(subparsers: Any) -> None:
    """Adds the command to the parser."""
    parser = subparsers.add_parser(
        "train",
        help="train a sparse autoencoder whose thresholds learn (the default)",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data(parser)
    add_pairs(parser)
    add = functools.partial(add_number, parser)
    text = "features of the dictionary"
    add("--features", int, None, text, low=1, high=INT32, shown="256, or --start's")
    add("--l0", float, 10.0, "mean number of open features to reach")
    add("--steps", int, 2500, "optimiser steps", low=1, high=INT32)
    add_start(parser)
    add_recipe(parser)
    text = "of the weights and of the order of the examples"
    add("--seed", int, 0, text, low=0, high=2**63 - 1)
    parser.add_argument(
        "--dense",
        action="store_true",
        help="multiply the zeros, too; without it they are skipped, where --l0 is at most one "
        "feature in 32 and the recipe allows it",
    )
    parser.add_argument(
        "--screen",
        choices=("int8", "bfloat16"),
        help="where zeros are skipped, prove most of them from a product of numbers rounded so, in "
        "place of the first dense product: the same run to rounding, and on some processors a "
        "faster one",
    )
    add_run(parser, "results/sae")
    add_devices(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds what is trained on."""
    parser.add_argument(
        "data",
        nargs="?",
        default="patches",
        metavar="DATA",
        help="'patches' (12 x 12 pixels of the photographs in scikit-learn, whitened), or a .npy "
        "or .safetensors file with one example per row, or a folder of them, which may be larger "
        "than memory (default: patches)",
    )


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Adds what makes it a transcoder."""
    add_targets(parser)
    parser.add_argument(
        "--skip",
        action="store_true",
        help="with --targets: a skip connection, too, which adds x @ W_skip to the output, starts "
        "at 0 and learns with the rest (default: as --start has it)",
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    """Adds the model to begin with."""
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="a file or folder in any known format to begin with, in place of random weights; its "
        "recipe, where it says one, is the default for --recipe",
    )


def open_start(args: argparse.Namespace) -> "Autoencoder | None":
    """The model to begin with, if any; --features is its own then."""
    from jaxtrelu import sae

    start = None if args.start is None else sae.load(args.start)
    own = _FEATURES if start is None else start.features
    if args.features is None:
        args.features = own
    if start is not None and args.features != own:
        raise UserError(f"--features is {args.features}, but the model of --start has {own}.")
    return start


def check_start(start: "Autoencoder | None", rows: "Rows") -> None:
    """Raises UserError where a model and the data do not go together."""
    if start is not None and start.dimension != rows.dimension:
        raise UserError(
            f"the model of --start is of dimension {start.dimension}, but the rows are of "
            f"{rows.dimension}."
        )
    if start is not None and start.output_dimension != rows.output_dimension:
        raise UserError(
            f"the model of --start has outputs of dimension {start.output_dimension}, but what it "
            f"should make of the rows is of {rows.output_dimension}: a transcoder is trained on "
            "with --targets, an autoencoder without."
        )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe and what of it may be changed."""
    add = functools.partial(add_number, parser, default=None, shown="the recipe's")
    parser.add_argument(
        "--recipe",
        choices=_RECIPES,
        help="loss, optimiser and start: one for runs of a few thousand steps, or a published one; "
        "frequent_resampling suits sums of sparse directions, and wants a --coefficient near what "
        "--l0 needs; gemma_scope_2 steers L0 by a quadratic penalty (default: short_run)",
    )
    add("--batch-size", int, text="examples in a step", low=1, high=INT32)
    add("--learning-rate", float, text="of Adam")
    add("--bandwidth", float, text="of the surrogate, in units of the scaled inputs")
    add("--threshold", float, text="every threshold at the start, in the same units")
    add(
        "--initial-norm", float, text="of the encoder's rows at the start, and of free decoder rows"
    )
    text = "λ at the start; with frequent_resampling after its ramp, with gemma_scope_2 throughout"
    add("--coefficient", float, text=text)
    add(
        "--resample-every",
        float,
        text="steps (or a fraction of the run) after which features that never open start again, "
        "in the first half of the run; 0: never",
    )


def add_run(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds where results go, and how a run is kept."""
    add = functools.partial(add_number, parser)
    add(
        "--held-out", int, None, "rows, about, that are kept aside and reported on", low=0,
        shown="a tenth, and 8192 at most",
    )  # fmt: skip
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="remove the checkpoints in the output folder and begin at the start",
    )
    add("--checkpoint-every", int, 500, "steps between two checkpoints", low=1)
    parser.add_argument(
        "--output",
        default=output,
        metavar="DIR",
        help=f"folder for results and checkpoints (default: {output})",
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Adds on which devices, and in how many processes."""
    group = parser.add_argument_group("several devices (docs/many_processes.md)")
    group.add_argument(
        "--all-devices",
        action="store_true",
        help="share the examples of a batch among all devices, and not one alone",
    )
    add_number(
        group, "--feature-devices", int, 1, "of these, among how many features are shared", low=1
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where the first of several processes listens, each of which runs this command on all "
        "its devices; 'auto': as Slurm, Open MPI, Kubernetes or the TPU pod says",
    )
    add_number(group, "--processes", int, None, "how many processes", low=1, shown="the cluster's")
    add_number(group, "--process", int, None, "which one, from 0", low=0, shown="the cluster's")


def prepare(args: argparse.Namespace) -> None:
    """Joins the other processes; before JAX looks for devices."""
    if args.coordinator is None:
        if args.processes is not None or args.process is not None:
            raise UserError("--processes and --process need a --coordinator.")
        return
    import jax

    own = args.coordinator != "auto"
    if own and (args.processes is None or args.process is None):
        raise UserError("--coordinator needs --processes and --process, unless it is 'auto'.")
    if own and args.process >= args.processes:
        raise UserError(f"--process should be below --processes, but is {args.process}.")
    address = args.coordinator if own else None
    if process.is_own_command_line():
        process.end_where_jax_aborts(
            "error: JAX has ended this process, as it does when one of the others is gone (what it "
            f"said stands above): {_AGAIN}",
            2,
        )
    try:
        process.in_a_thread(
            jax.distributed.initialize, address, args.processes, args.process,
            shutdown_timeout_seconds=_WRITING,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"the processes do not find each other: {reason}.") from None


def _mesh(args: argparse.Namespace) -> Any:
    """The devices to train on, or None: one."""
    if not (args.all_devices or args.coordinator is not None):
        if args.feature_devices > 1:
            raise UserError("--feature-devices needs --all-devices or a --coordinator.")
        return None
    import jax
    from jax.sharding import AxisType

    number, features = jax.device_count(), args.feature_devices
    if number % features:
        raise UserError(
            f"--feature-devices should divide the number of devices, {number}, but is {features}."
        )
    shape, kinds = (number // features, features), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("examples", "features"), axis_types=kinds)


def run(args: argparse.Namespace) -> int:
    """Trains, writes and prints."""
    folder = _files.check_folder(args.output)

    # Before the long work, so that what is missing shows now.
    from jaxtrelu import sae
    from jaxtrelu._cli.sae import results
    from jaxtrelu.sae._train import rows_of, with_batches_for

    start = open_start(args)
    _check_l0(args)
    recipe = recipe_of(args, start)
    rows = rows_of(open_data(args.data, args.seed, args.held_out), args.seed, None, args.targets)
    if args.recipe is None and args.batch_size is None:
        recipe = with_batches_for(rows, recipe)
    check_start(start, rows)
    started = time.perf_counter()
    mesh = _mesh(args)
    with _with_others(args):
        model = _train(rows, args, recipe, start, folder / "checkpoints", mesh)
    if mesh is not None and not _first():
        _part(args)
        return 0
    seconds = time.perf_counter() - started
    found = results.Results(rows, model)
    contents: dict[str, bytes | str] = {
        "sae.json": json.dumps(found.summary(), indent=1) + "\n",
        "history.csv": found.to_csv(),
        **found.draw_training(),
        **found.draw_dictionary(None if args.targets else _side(rows, args.data)),
    }
    # Files first: what can go wrong with the terminal must not cost the results.
    paths = sae.save(model, folder / "sae.safetensors")
    paths += _files.write_files(folder, contents)
    found.show(seconds)
    for path in paths:
        print(path)
    _part(args)
    return 0


def _part(args: argparse.Namespace) -> None:
    """Waits for the other processes, if there are any, which JAX would do at Python's exit.

    Here signals are heard meanwhile, and one that is gone costs no traceback.
    """
    if args.coordinator is None or not process.is_own_command_line():
        return
    import jax

    if not _first():
        with _with_others(args):
            process.in_a_thread(jax.distributed.shutdown)
        return
    sys.stdout.flush()
    gone = "note: another process was gone before the end; the results are complete."
    process.end_where_jax_aborts(gone, 0)
    try:
        process.in_a_thread(jax.distributed.shutdown)
    except jax.errors.JaxRuntimeError:
        process.end(gone, 0)


def _first() -> bool:
    """Whether this process writes and prints."""
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def _with_others(args: argparse.Namespace) -> Iterator[None]:
    """What fails because another process is gone is one sentence."""
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Of what JAX's runtime says, too, some is a ValueError; it begins with the kind of error.
        if args.coordinator is None or not re.match(r"[A-Z_]+: ", str(error)):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            "what is computed with the other processes failed, as it does when one of them is gone "
            f"({reason}): {_AGAIN}"
        ) from None


def _train(
    rows: "Rows",
    args: argparse.Namespace,
    recipe: "Recipe",
    start: "Autoencoder | None",
    folder: Path,
    mesh: Any,
) -> "Autoencoder":
    """The run, with its progress on stderr."""
    from jaxtrelu import sae
    from jaxtrelu._cli.console import progress

    log_every = max(1, min(50, args.steps // 20))
    with progress(args.steps, "reading the data") as bar:
        seen = read = 0

        def on_read(count: int) -> None:
            nonlocal read
            read += count
            bar.advance(0, f"reading the data: {read / len(rows):.0%}")

        def on_step(step: int, entry: dict[str, float] | None) -> None:
            nonlocal seen
            if not seen and step > 1 and (mesh is None or _first()):
                bar.log(f"going on from step {step - 1:,}")
            label = f"L0 {entry['l0']:.1f}" if entry else None
            bar.advance(step - seen, label)
            seen = step
            if entry and step % (10 * log_every) == 0 and (mesh is None or _first()):
                bar.log(_line(entry))

        model = sae.train(
            rows,
            features=args.features,
            l0=args.l0,
            steps=args.steps,
            recipe=recipe,
            start=start,
            skip=args.skip or None,
            seed=args.seed,
            sparse=not args.dense,
            screen=args.screen,
            log_every=log_every,
            checkpoint_folder=folder,
            checkpoint_every=args.checkpoint_every,
            fresh=args.fresh,
            mesh=mesh,
            on_read=on_read,
            on_step=on_step,
        )
        if not seen and (mesh is None or _first()):
            bar.log(FINISHED.format(args.steps))
        return model


def _check_l0(args: argparse.Namespace) -> None:
    if not 0 < args.l0 < args.features:
        raise UserError(
            f"--l0 should be between 0 and the number of --features ({args.features}), but is "
            f"{args.l0:g}."
        )


def recipe_of(args: argparse.Namespace, start: "Autoencoder | None" = None) -> "Recipe":
    """The recipe that was asked for, or that of the model to start from."""
    from jaxtrelu import sae
    from jaxtrelu.sae._start import recipe_of as known_recipe
    from jaxtrelu.sae._train import usual_recipe

    if args.recipe is not None:
        several = isinstance(args.l0, list) and len(args.l0) > 1
        if several and args.recipe in _OF_AN_L0:
            raise UserError(
                f"--recipe {args.recipe} is for one --l0, to which it scales the inputs: sweep "
                "over --seeds, or call the command for each --l0."
            )
        l0 = args.l0[0] if isinstance(args.l0, list) else args.l0
        told = (l0,) if args.recipe in _OF_AN_L0 else ()
        recipe: Recipe = getattr(sae, args.recipe)(*told)
    else:
        skip = args.skip or (start is not None and start.skip is not None)
        recipe = (start and known_recipe(start)) or usual_recipe(skip)
    changes: dict[str, Any] = {}
    if args.batch_size is not None:
        changes["batch_size"] = args.batch_size
    if args.learning_rate is not None:
        changes["learning_rate"] = args.learning_rate
    if args.coefficient is not None:
        changes["coefficient"] = args.coefficient
    if args.resample_every is not None:
        changes["resample_every"] = args.resample_every
    if args.threshold is not None:
        changes["initial_threshold"] = args.threshold
    if args.initial_norm is not None:
        changes["initial_norm"] = args.initial_norm
    if args.bandwidth is not None:
        changes["surrogate"] = dataclasses.replace(recipe.surrogate, bandwidth=args.bandwidth)
    return dataclasses.replace(recipe, **changes)


def _line(entry: dict[str, float]) -> str:
    return (
        f"step {entry['step']:6.0f}  L0 {entry['l0']:7.2f}  lost variance "
        f"{entry['reconstruction']:6.1%}  λ {entry['coefficient']:.3g}  median threshold "
        f"{entry['threshold_50']:.3f}"
    )


def _side(rows: "Rows", data: str) -> int | None:
    """The side of the square images that the rows are, if they are such."""
    return round(rows.dimension**0.5) if data == "patches" else None
