"""Training in one call: from an array or a file to a model, with rows kept aside to judge it by."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any, NamedTuple, overload

import numpy as np
from jax.sharding import Mesh

from jaxtrelu.sae._model import Autoencoder, check_targets, matrix
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._recipes import Recipe, short_run
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import Rows, array_of, open_rows
from jaxtrelu.sae._settings import Settings, flag
from jaxtrelu.sae._start import Start, recipe_of, start_of
from jaxtrelu.sae._store import load
from jaxtrelu.sae._training import run
from jaxtrelu.sparse._screen import Precision

# λ at the start of a run with a skip connection, which explains most of the targets: from 1 all
# features close first, and L0 is late by thousands of steps.
_BESIDE_A_SKIP = 0.1
_HELD_OUT = 8192  # rows, at most, unless asked for
# What a recipe's initialisation is where encoder and decoder are of different spaces.
_INDEPENDENT = {"tied_unit": "independent_unit", "uniform": "independent_uniform"}


def train(
    x: Any,
    *,
    targets: Any = None,
    features: int | None = None,
    l0: float | None = None,
    steps: int = 2500,
    recipe: Recipe | None = None,
    start: Autoencoder | str | os.PathLike | None = None,
    skip: bool | None = None,
    seed: int = 0,
    held_out: int | None = None,
    sparse: bool = True,
    screen: Precision | bool | None = None,
    log_every: int | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    fresh: bool = False,
    mesh: Mesh | None = None,
    on_read: Callable[[int], None] | None = None,
    on_step: Callable[[int, dict[str, float] | None], None] | None = None,
) -> Autoencoder:
    """Trains a sparse autoencoder on the rows of an array or a file; with targets, a transcoder.

    Args:
      x: (n, d), one example per row: an array, the path of a `.npy` file (which may be larger than
        memory), or `Rows`, whose own seed and rows kept aside count.
      targets: (n, d_out), what a transcoder should make of each row: of the same kinds as x, and of
        as many rows. They have a scale of their own (`Autoencoder.output_scale`), and explained
        variance is that of the targets. None: the rows themselves, as an autoencoder.
      features: m, the size of the dictionary; with `start` it is that model's.
      l0: the mean number of open features to reach; None: the recipe's λ is kept.
      steps: optimiser steps.
      recipe: loss, optimiser and start; None: `short_run`, with smaller batches where there are
        fewer rows than its 512, and with a skip connection a λ that begins at 0.1.
      start: a model to begin with, which `load` may have read from another library's file, in place
        of random weights: the first step is taken from the very function that it is, with a new
        state of the optimiser. Its recipe, where it says one, is the default for `recipe`, from
        the λ that it ended with, without a ramp or revival. Or the path of its file or folder.
      skip: whether a transcoder has a skip connection, too: its output adds x @ W_skip, (d, d_out),
        which starts at 0 and learns with the rest (Paulo et al. 2025, arXiv 2501.18823). None: as
        `start` has it; without one, none.
      seed: of the weights and of the order of the rows.
      held_out: how many rows, about, are kept aside to evaluate on (`held_out`); None: a tenth of
        them, and 8192 at most.
      sparse: whether zeros are skipped where that pays; see `Settings`.
      screen: "int8" (or True) or "bfloat16": whether most zeros are proved from a product of
        numbers so rounded, in place of the first dense product; see `Settings`.
      log_every: steps between two entries of the history; None: about 20 entries, at most 50 steps
        apart.
      checkpoint_folder: where to keep checkpoints, and to look for one to resume from.
      checkpoint_every: steps between two checkpoints.
      fresh: whether to remove the checkpoints in the folder first.
      mesh: the devices to train on; as in `run`.
      on_read: as in `run`.
      on_step: as in `run`.

    Returns:
      An `Autoencoder`. Its `training` has the history; `about["training"]` says what it was trained
      on.

    Raises:
      TypeError: neither `features` nor `start` is passed, or `start` is no model.
      ValueError: as `run`; there are not as many targets as rows; `start` has other `features`, is
        of other dimensions, is a transcoder where there are no targets, normalises each row, or has
        the skip connection that `skip` would drop.
      FloatingPointError: the loss is not finite any more; the message says at which step.
      MemoryError: the run would need more memory than is free.
      OSError: checkpoints cannot be written.
    """
    rows = rows_of(x, seed, held_out, targets)
    first = begin(rows, start, features, skip)
    recipe = recipe_for(rows, recipe, first.model, first.skip)
    with renamed({"`target_l0`": "`l0`"}):
        settings = Settings(
            features=first.features,
            steps=steps,
            recipe=recipe,
            target_l0=l0,
            seed=seed,
            log_every=log_interval(steps, log_every),
            sparse=sparse,
            screen=screen,
            skip=first.skip,
        )
    result = run(
        rows,
        settings,
        start=first.start,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        fresh=fresh,
        mesh=mesh,
        on_read=on_read,
        on_step=on_step,
    )
    return model_of(rows, settings, result, first)


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Errors call what a user passed by the name that it has where it was passed."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        for inside, outside in names.items():
            message = message.replace(inside, outside)
        raise type(error)(message) from None


class Begin(NamedTuple):
    """What a run begins with, of what a user passes."""

    model: Autoencoder | None
    """The model that it goes on from, if any."""
    start: Start | None
    """Its weights."""
    features: int
    skip: bool


def begin(rows: Rows, start: Any, features: int | None, skip: bool | None) -> Begin:
    """What a run on those rows begins with.

    Raises:
      TypeError: neither `features` nor `start` is passed, or `start` is no model.
      ValueError: `start` does not go together with the rest.
    """
    if skip is not None:
        skip = flag(skip, "skip")
    if start is None:
        if features is None:
            raise TypeError(
                "pass `features`, the size of the dictionary, or a model to `start` from."
            )
        return Begin(None, None, features, False if skip is None else skip)
    if isinstance(start, str | os.PathLike):
        start = load(start)
    found = start_of(start, rows)
    if features is not None and features != found.features:
        raise ValueError(
            f"`start` has {found.features} features, but `features` is {features}. Leave the "
            "latter out."
        )
    if skip is False and found.skip is not None:
        raise ValueError("`start` has a skip connection: leave `skip` out to keep it.")
    return Begin(start, found, found.features, found.skip is not None if skip is None else skip)


@overload
def held_out(model: Autoencoder, x: Any) -> np.ndarray | None: ...
@overload
def held_out(model: Autoencoder, x: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]: ...
def held_out(model: Autoencoder, x: Any, targets: Any = None) -> Any:
    """The rows that were kept aside when the model was trained on x.

    Args:
      model: an `Autoencoder`.
      x: as in `train`.
      targets: as in `train`.

    Returns:
      (k, d), float32, and with `targets` a pair: these, and their targets, (k, d_out). None where
      an autoencoder was trained on other data, or it is not known on which, or no rows were kept
      aside.

    Raises:
      ValueError: the same of a transcoder, or its targets are missing; the message says which.
    """
    check_targets(model, targets)
    found = _kept_aside(model, x, targets)
    if not isinstance(found, str):
        return found
    if targets is None:
        return None
    raise ValueError(f"no pairs of these were kept aside: {found}.")


def _kept_aside(model: Autoencoder, x: Any, targets: Any) -> Any:
    """What `held_out` returns; or why there is nothing, a clause."""
    known = model.about.get("training")
    if not known:
        return "the model does not say what it was trained on"
    if targets is not None and "targets" not in known:
        return "the model was trained without targets"
    aside = known.get("held_out")
    if not aside:
        return "the training used all rows"
    which = f"it was trained on {known.get('data')}"
    if targets is not None:
        which += f" with {known['targets']}"
    for name, array, width in (
        ("x", x, model.dimension), ("`targets`", targets, model.output_dimension),
    ):  # fmt: skip
        if array is not None and matrix(array, name).shape[1:] != (width,):
            shape = matrix(array, name).shape
            return f"{name} should have {width} columns, but has shape {shape}: {which}"
    if len(matrix(x)) != known.get("rows"):
        return f"{which}, of {known.get('rows'):,} rows, and these are {len(matrix(x)):,}"
    if isinstance(x, Rows):  # which rows are kept aside follows from their number
        rows = x if x.held_out == aside else Rows(x.array, x.name, x.seed, held_out=aside)
    else:
        rows = rows_of(x, 0, aside)
    if targets is not None:
        rows = rows_of(rows, 0, None, targets)
    if rows.fingerprint() != known.get("fingerprint"):
        return f"{which}, and these are other numbers"
    if isinstance(rows, Pairs):
        return rows.held_out_rows, rows.held_out_targets
    return rows.held_out_rows


def judged_on(model: Autoencoder, x: Any, targets: Any = None) -> tuple[Any, Any]:
    """The rows and targets that a model is judged on: kept aside in its training, or all."""
    check_targets(model, targets)
    aside = _kept_aside(model, x, targets)
    if isinstance(aside, str):
        return x, targets
    return (aside, None) if targets is None else aside


def recipe_for(
    rows: Rows, recipe: Recipe | None, start: Autoencoder | None = None, skip: bool = False
) -> Recipe:
    """The recipe; where there is none, the start's or the usual one, with fitting batches."""
    if recipe is not None:
        return recipe
    known = None if start is None else recipe_of(start)
    return with_batches_for(rows, known or usual_recipe(skip))


def usual_recipe(skip: bool) -> Recipe:
    """`short_run`, with a λ to begin with that suits what a skip connection leaves to do."""
    recipe = short_run()
    return dataclasses.replace(recipe, coefficient=_BESIDE_A_SKIP) if skip else recipe


def with_batches_for(rows: Rows, recipe: Recipe) -> Recipe:
    """The recipe, with batches that the rows suffice for."""
    return dataclasses.replace(recipe, batch_size=min(recipe.batch_size, rows.shuffled_together))


def log_interval(steps: int, log_every: int | None) -> int:
    """Steps between two entries of a history: as asked for, or about twenty in a run."""
    if not isinstance(steps, Integral):
        return 1  # `Settings` refuses it
    return max(1, min(50, steps // 20)) if log_every is None else log_every


def model_of(
    rows: Rows,
    settings: Settings,
    result: Result,
    first: Begin,
) -> Autoencoder:
    """The model that a run ended with, and all that is known of how it came to be.

    What was known of the one that it began with, such as the hook that a file names, is kept.
    """
    kept = {} if first.model is None else first.model.about
    about = {
        "data": rows.name,
        "fingerprint": result.fingerprint,
        "rows": len(rows),
        "held_out": rows.held_out,
        "steps": settings.steps,
        "target_l0": settings.target_l0,
        "seed": settings.seed,
        "sparse": settings.visits_entries_only(),
        "screen": settings.screen,
        "coefficient": float(result.history["coefficient"][-1]),
        "start": None if first.start is None else first.start.fingerprint(),
    }
    drawn = settings.recipe.initialisation
    if isinstance(rows, Pairs):
        about["targets"] = rows.targets_name
        drawn = _INDEPENDENT[drawn]
    about["initialisation"] = "start" if first.start is not None else drawn
    skip = None
    if result.skip is not None:  # from the user's units to the user's units
        skip = np.asarray(result.skip, np.float64) * (result.scale / result.output_scale)
    return Autoencoder(
        result.weights,
        skip,  # type: ignore[arg-type]
        input_scale=result.scale,
        output_scale=result.output_scale,
        recipe=settings.recipe,
        about={**kept, "training": about},
        training=result,
    )


def rows_of(x: Any, seed: int, aside: int | None, targets: Any = None) -> Rows:
    """`Rows` of what a user passes, with the usual number kept aside unless told otherwise."""
    if targets is not None:
        return Pairs(rows_of(x, seed, aside), _named_rows(targets, "`targets`", 0, 0))
    if isinstance(x, Rows):
        return x
    if aside is None:
        aside = usual_aside(_length(x))
    return _named_rows(x, "the data", seed, aside)


def usual_aside(rows: int) -> int:
    """How many of so many rows are kept aside, unless told otherwise: a tenth, and 8192 at most."""
    return min(_HELD_OUT, rows // 10)


def _named_rows(x: Any, name: str, seed: int, aside: int) -> Rows:
    """`Rows` of what a user passes; an array has no name of its own."""
    if isinstance(x, Rows):
        return x
    if isinstance(x, str | os.PathLike):
        return open_rows(x, seed, held_out=aside)
    return Rows(array_of(x, name), name, seed, held_out=aside)


def _length(x: Any) -> int:
    if isinstance(x, str | os.PathLike):
        return len(open_rows(x))
    shape = np.shape(array_of(x, "the data"))
    return shape[0] if shape else 0
