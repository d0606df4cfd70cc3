"""Training in one call: from an array or a file to a model, with rows kept aside to judge it by."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
from jax.sharding import Mesh

from jaxtrelu.sae._model import Autoencoder
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._recipes import Recipe, short_run
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import Rows, open_rows
from jaxtrelu.sae._start import Start, recipe_of, start_of
from jaxtrelu.sae._training import Settings, run
from jaxtrelu.sparse._screen import Precision

_HELD_OUT = 8192  # rows, at most, unless asked for


def train(
    x: Any,
    *,
    targets: Any = None,
    features: int | None = None,
    l0: float | None = None,
    steps: int = 2500,
    recipe: Recipe | None = None,
    start: Autoencoder | None = None,
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
        fewer rows than its 512.
      start: a model to begin with, which `load` may have read from another library's file, in place
        of random weights: the first step is taken from the very function that it is, with a new
        state of the optimiser. Its recipe, where it says one, is the default for `recipe`.
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
        of other dimensions, or is a model with a skip connection or a normalisation of each row.
      FloatingPointError: the loss is not finite any more; the message says at which step.
      MemoryError: the run would need more memory than is free.
      OSError: checkpoints cannot be written.
    """
    rows = rows_of(x, seed, held_out, targets)
    begin = None
    if start is not None:
        begin = start_of(start, rows)
        features = begin.features if features is None else features
        if features != begin.features:
            raise ValueError(
                f"`start` has {begin.features} features, but `features` is {features}. Leave the "
                "latter out."
            )
    if features is None:
        raise TypeError("pass `features`, the size of the dictionary, or a model to `start` from.")
    recipe = recipe_for(rows, recipe, start)
    try:
        settings = Settings(
            features=features,
            steps=steps,
            recipe=recipe,
            target_l0=l0,
            seed=seed,
            log_every=log_interval(steps, log_every),
            sparse=sparse,
            screen=screen,
        )
    except (TypeError, ValueError) as error:
        # By the name that it has here.
        raise type(error)(str(error).replace("`target_l0`", "`l0`")) from None
    result = run(
        rows,
        settings,
        start=begin,
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=checkpoint_every,
        fresh=fresh,
        mesh=mesh,
        on_read=on_read,
        on_step=on_step,
    )
    return model_of(rows, settings, result, begin, {} if start is None else start.about)


@overload
def held_out(model: Autoencoder, x: Any) -> np.ndarray | None: ...
@overload
def held_out(model: Autoencoder, x: Any, targets: Any) -> tuple[np.ndarray, np.ndarray] | None: ...
def held_out(model: Autoencoder, x: Any, targets: Any = None) -> Any:
    """The rows that were kept aside when the model was trained on x.

    Args:
      model: an `Autoencoder`.
      x: as in `train`.
      targets: as in `train`.

    Returns:
      (k, d), float32, and with `targets` a pair: these, and their targets, (k, d_out). None where
      the model was trained on other data, or it is not known on which, or no rows were kept aside.
    """
    known = model.about.get("training", {})
    aside = known.get("held_out")
    if not aside or (targets is not None and "targets" not in known):
        return None
    if _length(x) != known.get("rows"):
        return None
    if isinstance(x, Rows):  # which rows are kept aside follows from their number
        rows = x if x.held_out == aside else Rows(x.array, x.name, x.seed, held_out=aside)
    else:
        rows = rows_of(x, 0, aside)
    if targets is not None:
        rows = rows_of(rows, 0, None, targets)
    if rows.fingerprint() != known.get("fingerprint"):
        return None
    if isinstance(rows, Pairs):
        return rows.held_out_rows, rows.held_out_targets
    return rows.held_out_rows


def judged_on(model: Autoencoder, x: Any, targets: Any = None) -> tuple[Any, Any]:
    """The rows and targets that a model is judged on: kept aside in its training, or all."""
    aside = held_out(model, x, targets)
    if aside is None:
        return x, targets
    return (aside, None) if targets is None else aside


def recipe_for(rows: Rows, recipe: Recipe | None, start: Autoencoder | None = None) -> Recipe:
    """The recipe; where there is none, the start's or the usual one, with fitting batches."""
    if recipe is not None:
        return recipe
    known = None if start is None else recipe_of(start)
    return with_batches_for(rows, known or short_run())


def with_batches_for(rows: Rows, recipe: Recipe) -> Recipe:
    """The recipe, with batches that the rows suffice for."""
    return dataclasses.replace(recipe, batch_size=min(recipe.batch_size, rows.shuffled_together))


def log_interval(steps: int, log_every: int | None) -> int:
    """Steps between two entries of a history: as asked for, or about twenty in a run."""
    return max(1, min(50, steps // 20)) if log_every is None else log_every


def model_of(
    rows: Rows,
    settings: Settings,
    result: Result,
    start: Start | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Autoencoder:
    """The model that a run ended with, and all that is known of how it came to be.

    `kept` is what was known of the one that it began with, such as the hook that a file names.
    """
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
        "start": None if start is None else start.fingerprint(),
    }
    if isinstance(rows, Pairs):
        about["targets"] = rows.targets_name
    return Autoencoder(
        result.weights,
        input_scale=result.scale,
        output_scale=result.output_scale,
        recipe=settings.recipe,
        about={**(kept or {}), "training": about},
        training=result,
    )


def rows_of(x: Any, seed: int, aside: int | None, targets: Any = None) -> Rows:
    """`Rows` of what a user passes, with the usual number kept aside unless told otherwise."""
    if targets is not None:
        return Pairs(rows_of(x, seed, aside), _named_rows(targets, "`targets`", 0, 0))
    if isinstance(x, Rows):
        return x
    if aside is None:
        aside = min(_HELD_OUT, _length(x) // 10)
    return _named_rows(x, "the data", seed, aside)


def _named_rows(x: Any, name: str, seed: int, aside: int) -> Rows:
    """`Rows` of what a user passes; an array has no name of its own."""
    if isinstance(x, Rows):
        return x
    if isinstance(x, str | os.PathLike):
        return open_rows(x, seed, held_out=aside)
    return Rows(np.asarray(x), name, seed, held_out=aside)


def _length(x: Any) -> int:
    return len(open_rows(x)) if isinstance(x, str | os.PathLike) else len(x)
