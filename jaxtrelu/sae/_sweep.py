"""Several runs at once, on the same batches: L0, λ and seed differ, and one program does them all.

A small autoencoder leaves most of a device idle; stacked along one more axis, several of them share
the reading of the data, the compilation and the launches.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sae._checkpoints import Checkpoints
from jaxtrelu.sae._evaluation import Evaluation, evaluate
from jaxtrelu.sae._model import Autoencoder
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._recipes import Recipe
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._settings import Asked, Program, Settings, flag, identity_of, program_of
from jaxtrelu.sae._step import (
    TrainState,
    advance,
    initial_state,
    measure,
    revive,
    revives_after,
)
from jaxtrelu.sae._train import (
    Begin,
    begin,
    log_interval,
    model_of,
    recipe_for,
    renamed,
    rows_of,
)
from jaxtrelu.sae._training import (
    HISTORY,
    check_interval,
    check_memory,
    check_skip,
    checked_statistics,
    not_finite_at_first,
    off_centre,
    scales_of,
    shortcomings,
)
from jaxtrelu.sae._warn import warn

# What settings of a run are called in `sweep`.
_NAMES = {
    "`target_l0`": "`l0`",
    "`seed`": "each of `seeds`",
    "`coefficient` of a recipe": "each of `coefficients`",
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Models that were trained at once, in the order of L0, then λ, then seed.

    Attributes:
      models: as `train` returns them.
      evaluations: of each, on the rows that were kept aside (where none were, on all).
      targets: the L0 that each was asked for; None: none was.
      coefficients: λ of each, where it is not steered; where it is, the first one.
      seeds: of the weights of each.
    """

    models: tuple[Autoencoder, ...]
    evaluations: tuple[Evaluation, ...]
    targets: tuple[float | None, ...]
    coefficients: tuple[float, ...]
    seeds: tuple[int, ...]

    def table(self) -> list[dict[str, Any]]:
        """A line for each run: what was asked for, and its figures by the names of `Evaluation`."""
        asked = zip(self.targets, self.coefficients, self.seeds, self.evaluations, strict=True)
        return [
            {"target_l0": target, "coefficient": coefficient, "seed": seed, **found.numbers()}
            for target, coefficient, seed, found in asked
        ]

    def to_csv(self) -> str:
        """The table as the content of a .csv file."""
        stream = io.StringIO()
        lines = self.table()
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return stream.getvalue()


def sweep(
    x: Any,
    *,
    targets: Any = None,
    features: int | None = None,
    l0: Sequence[float | None] = (None,),
    coefficients: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    steps: int = 2500,
    recipe: Recipe | None = None,
    start: Autoencoder | str | os.PathLike | None = None,
    skip: bool | None = None,
    held_out: int | None = None,
    log_every: int | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    fresh: bool = False,
    on_read: Callable[[int], None] | None = None,
    on_step: Callable[[int, dict[str, float] | None], None] | None = None,
) -> Sweep:
    """Trains several autoencoders or transcoders at once: for each combination of L0, λ and seed.

    All see the same batches in the same order, whatever their seeds; they run under one `vmap`, and
    with dense products.

    Args:
      x: as in `train`.
      targets: as in `train`.
      features: m, of each; with `start` it is that model's.
      l0: the mean numbers of open features to reach; None: the recipe's λ is kept.
      coefficients: values of λ, where it is not steered (where it is: the first one); None: the
        recipe's.
      seeds: of the weights.
      steps: optimiser steps.
      recipe: as in `train`.
      start: as in `train`: all begin with it, and a seed then only matters to features that start
        again.
      skip: as in `train`.
      held_out: as in `train`.
      log_every: as in `train`.
      checkpoint_folder: where to keep checkpoints of all of them, and to look for one to resume
        from.
      checkpoint_every: steps between two checkpoints.
      fresh: whether to remove the checkpoints in the folder first.
      on_read: as in `run`.
      on_step: as in `run`; the entries are means over the runs.

    Returns:
      A `Sweep`.

    Raises:
      ValueError: as `train`; nothing to combine, or some L0 asked for and some not.
      FloatingPointError: the loss of a run is not finite any more.
      MemoryError: the runs would need more memory than is free.
      OSError: checkpoints cannot be written.
    """
    rows = rows_of(x, 0, held_out, targets)
    first = begin(rows, start, features, skip)
    recipe = recipe_for(rows, recipe, first.model, first.skip)
    lambdas = (recipe.coefficient,) if coefficients is None else coefficients
    for name, several in (("l0", l0), ("coefficients", lambdas), ("seeds", seeds)):
        if isinstance(several, str) or not isinstance(several, Sequence | np.ndarray):
            raise TypeError(f"`{name}` should be several values, such as a list, not {several!r}.")
        if len(set(several)) < len(several):
            raise ValueError(f"`{name}` should be different values, but are {tuple(several)}.")
    runs = list(itertools.product(l0, lambdas, seeds))
    if not runs:
        raise ValueError("`l0`, `coefficients` and `seeds` should each have one value at least.")
    steered = [target for target, _, _ in runs if target is not None]
    if steered and len(steered) < len(runs):
        raise ValueError("`l0` should be numbers, or None alone: one program does all the runs.")
    # Of the settings of each, those that differ are passed beside the common ones.
    with renamed(_NAMES):
        each = [
            Settings(
                features=first.features,
                steps=steps,
                recipe=_with(recipe, coefficient),
                target_l0=target,
                seed=seed,
                log_every=log_interval(steps, log_every),
                sparse=False,
                skip=first.skip,
            )
            for target, coefficient, seed in runs
        ]
    size = recipe.batch_size
    check_interval(checkpoint_every)
    fresh = flag(fresh, "fresh")
    check_skip(each[0], rows)
    check_memory(each[0], rows, len(each))
    rows.check_batch(size)
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoint_folder is not None:
            store = stack.enter_context(Checkpoints(checkpoint_folder))
        ended = _run(rows, each, first, store, checkpoint_every, fresh, on_read, on_step)
    seen: Any = rows.held_out_rows if rows.held_out else rows
    wanted: Any = None
    if isinstance(rows, Pairs):
        wanted = rows.held_out_targets if rows.held_out else rows.targets
    models, found = [], []
    for place, settings in enumerate(each):
        weights, passed = jax.tree.map(
            lambda v, place=place: v[place], (ended.states.weights, ended.states.skip)
        )
        columns = dict(zip(HISTORY, ended.history[:, place].T, strict=True))
        for sentence in shortcomings(columns, settings, settings.target_l0):
            warn(f"run {place} of the sweep: {sentence}")
        result = Result(
            weights, ended.scale, columns, ended.resumed_from, ended.fingerprint,
            ended.output_scale, passed,
        )  # fmt: skip
        model = model_of(rows, settings, result, first)
        models.append(model)
        found.append(evaluate(model, seen, targets=wanted))
    told = [(s.target_l0, s.recipe.coefficient, s.seed) for s in each]
    return Sweep(tuple(models), tuple(found), *zip(*told, strict=True))


def _with(recipe: Recipe, coefficient: float) -> Recipe:
    """The recipe with another λ, a float: 1 and 1.0 are the same run."""
    checked = dataclasses.replace(recipe, coefficient=coefficient)
    return dataclasses.replace(checked, coefficient=float(checked.coefficient))


class _Ended(NamedTuple):
    """What the runs ended with."""

    states: TrainState
    """Stacked."""
    history: np.ndarray
    """(entries, runs, columns)."""
    scale: float
    output_scale: float
    resumed_from: int
    fingerprint: str


def _run(
    rows: Any,
    each: list[Settings],
    first: Begin,
    store: Checkpoints | None,
    checkpoint_every: int,
    fresh: bool,
    on_read: Callable[[int], None] | None,
    on_step: Callable[[int, dict[str, float] | None], None] | None,
) -> _Ended:
    common = each[0]
    found = checked_statistics(rows, on_read)
    fingerprint = found[0].fingerprint
    scale, output_scale = scales_of(found, rows, common.recipe)
    size = common.recipe.batch_size
    probe, wanted = rows.split(rows.batch(0, size))
    probe = probe * np.float32(scale)
    if wanted is not None:
        wanted = wanted * np.float32(output_scale)
    weights, passed = None, None
    threshold: Any = common.recipe.initial_threshold
    if first.start is not None:
        unit_norm = common.recipe.unit_norm_decoder
        weights = first.start.scaled(scale, output_scale, unit_norm=unit_norm)
        passed = first.start.scaled_skip(scale, output_scale)
        threshold = jnp.asarray(weights.threshold)
    else:
        for sentence in off_centre(found, rows):
            warn(sentence)
    states = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(initial_state(s, probe, weights, wanted, passed) for s in each),
    )
    history = np.zeros((0, len(each), len(HISTORY)))
    if store is not None:
        if fresh:
            store.clear()
        own = {"runs": repr([(s.target_l0, s.recipe.coefficient, s.seed) for s in each])}
        if first.start is not None:
            own["start"] = first.start.fingerprint()
        store.identity = {**identity_of(common, rows, fingerprint), **own}
        restored, skipped = store.restore((states, history))
        if restored is not None:
            states, history = restored
        for sentence in skipped:
            warn(sentence)
    targets = [s.target_l0 for s in each]
    asked = Asked(
        None if targets[0] is None else jnp.array(targets, jnp.float32),
        jnp.array([s.recipe.coefficient for s in each], jnp.float32),
    )
    start = int(states.step[0])
    variance = found[-1].variance * output_scale**2
    program = program_of(common)
    for step in range(start, common.steps):
        x, y = rows.split(rows.batch(step, size))
        states, terms = _advance(states, x, scale, asked, program, y, output_scale)
        if revives_after(step + 1, common):
            states = _revive(states, x, scale, common, y, output_scale)
        if not step and not np.isfinite(np.asarray(terms.reconstruction)).all():
            raise FloatingPointError(not_finite_at_first(common.recipe, scale, first.start))
        entry = None
        last = step + 1 == common.steps
        if (step + 1) % common.log_every == 0 or last:
            seen = _measure(states.weights, probe, threshold, common.recipe.surrogate)
            lost = np.asarray(terms.reconstruction) / variance
            fixed = [np.full(len(each), step + 1.0), terms.l0, lost, states.controller.coefficient]
            line = np.stack([np.asarray(v, np.float64) for v in (*fixed, *seen)], axis=1)
            bad = np.flatnonzero(~np.isfinite(lost))
            if len(bad):
                raise FloatingPointError(
                    f"the loss of run {bad[0]} of the sweep is not finite any more at step "
                    f"{step + 1}: the sweep was stopped there. Pass a smaller learning rate."
                )
            history = np.concatenate([history, line[None]])
            entry = dict(zip(HISTORY, line.mean(axis=0).tolist(), strict=True))
        if store is not None and (last or (step + 1) % checkpoint_every == 0):
            store.save(step + 1, (states, history))
        if on_step:
            on_step(step + 1, entry)
    return _Ended(states, history, scale, output_scale, start, fingerprint)


@partial(jax.jit, static_argnames="program", donate_argnames="states")
def _advance(
    states: TrainState,
    x: Any,
    scale: float,
    asked: Asked,
    program: Program,
    targets: Any,
    output_scale: float,
) -> tuple[TrainState, Any]:
    def one(state: TrainState, asked: Asked) -> tuple[TrainState, Any]:
        return advance(state, x, scale, asked, program, targets, output_scale)

    return jax.vmap(one)(states, asked)


@partial(jax.jit, static_argnames="settings", donate_argnames="states")
def _revive(
    states: TrainState,
    x: Any,
    scale: float,
    settings: Settings,
    targets: Any,
    output_scale: float,
) -> TrainState:
    one = partial(
        revive, x=x, scale=scale, settings=settings, targets=targets, output_scale=output_scale
    )
    return jax.vmap(one)(states)


@partial(jax.jit, static_argnums=3)
def _measure(weights: Any, x: Any, initial_threshold: Any, surrogate: Surrogate) -> Any:
    one = partial(measure, surrogate=surrogate)
    return jax.vmap(one, in_axes=(0, None, None))(weights, x, initial_threshold)
