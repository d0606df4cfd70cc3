"""Training a sparse autoencoder: a pure step, and a loop that can be killed at any moment.

Everything that a run depends on is in its `Settings`, its rows and its `TrainState`; the state is
checkpointed, and batches are a function of the step's number. So a run that is resumed goes on bit
for bit as if it had not been stopped (on the same machine, with the same versions).
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sae import _losses as losses
from jaxtrelu.sae._checkpoints import Checkpoints
from jaxtrelu.sae._controller import ControllerState, L0Controller, l0_target_controller
from jaxtrelu.sae._devices import Devices
from jaxtrelu.sae._diagnostics import diagnostics
from jaxtrelu.sae._pairs import Pairs
from jaxtrelu.sae._processes import Processes
from jaxtrelu.sae._recipes import Recipe, gemma_scope, plain
from jaxtrelu.sae._result import Result
from jaxtrelu.sae._rows import Rows, Statistics
from jaxtrelu.sae._start import Start
from jaxtrelu.sae._warn import warn
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    constrained_gradient,
    initial_weights,
    input_scale,
    revived,
)
from jaxtrelu.sparse._block import CROSSOVER
from jaxtrelu.sparse._screen import Precision

#: The columns of `Result.history`. Thresholds are given by their quantiles; silent_share is the
#: share of features that are open nowhere in one batch, which few would be called dead for.
HISTORY = (
    "step", "l0", "reconstruction", "coefficient", "silent_share", "window_share",
    "threshold_distance", "threshold_05", "threshold_25", "threshold_50", "threshold_75",
    "threshold_95",
)  # fmt: skip
_LISTED = 32  # open features, at least, for which lists are made without a target
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# What is said at the end: of an L0 that is further from its target than this, and of thresholds
# that moved by less than this part of the bandwidth, in as many steps or more.
_L0_TOLERANCE, _STILL, _LONG_ENOUGH = 0.15, 0.02, 200
_OFF_CENTRE = 3.0  # docs/autoencoders.md has what was measured


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run: its size, its length and its recipe.

    Args:
      features: m.
      steps: number of optimiser steps.
      recipe: a recipe; its batch size counts.
      target_l0: mean number of open features to steer λ to; None: λ follows the recipe. The target
        itself falls geometrically to this, from half of all features, over the steps in which the
        recipe ramps λ up: features that are closed before they mean anything stay dead. With
        `steer_from` in the recipe λ ramps up first, and is then steered to this. With the penalty
        "quadratic_l0" λ is not steered and follows the recipe: the target is the penalty's.
      seed: of the initial weights. (The rows have one of their own.)
      log_every: steps between two rows of the history.
      sparse: whether to use `jaxtrelu.sparse_mlp` where it pays: the same run to rounding, in down
        to half the time for wide dictionaries (docs/sparse.md). Not where the recipe needs the
        dense latent, nor where `target_l0` (without one: 32) is more than one feature in 32, the
        share for which lists are made.
      screen: how the first product is screened where zeros are skipped, "int8" (or True) or
        "bfloat16", as in `jaxtrelu.sparse_mlp`: the same run to rounding; whether it is a faster
        one depends on the processor (docs/screening.md). None: not at all.
      skip: whether a transcoder has a skip connection, too, which adds x @ W_skip to its output,
        starts at 0 and learns with the rest.
    """

    features: int
    steps: int
    recipe: Recipe = dataclasses.field(default_factory=gemma_scope)
    target_l0: float | None = None
    seed: int = 0
    log_every: int = 50
    sparse: bool = True
    screen: Precision | bool | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        for name, least in (("features", 1), ("steps", 1), ("log_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(
                    f"`{name}` should be a whole number ≥ {least}, but is {value!r:.80}."
                )
            object.__setattr__(self, name, plain(value))
        for name in ("sparse", "skip"):
            object.__setattr__(self, name, flag(getattr(self, name), name))
        if not isinstance(self.recipe, Recipe):
            raise TypeError(
                "`recipe` should be a recipe, such as jaxtrelu.sae.gemma_scope(), but is "
                f"{self.recipe!r}."
            )
        no_number = isinstance(self.target_l0, bool) or not isinstance(self.target_l0, Real)
        if self.target_l0 is not None and no_number:
            several = isinstance(self.target_l0, Sequence | np.ndarray)
            raise TypeError(
                f"`target_l0` should be one number or None, but is {self.target_l0!r:.80}."
                f"{' For several use jaxtrelu.sae.sweep.' if several else ''}"
            )
        object.__setattr__(self, "target_l0", plain(self.target_l0))
        if self.target_l0 is not None and not 0 < self.target_l0 < self.features:
            raise ValueError(
                f"`target_l0` should be between 0 and the number of features ({self.features}), "
                f"but is {self.target_l0!r}."
            )
        if self.recipe.penalty == "quadratic_l0" and self.target_l0 is None:
            raise ValueError(
                f"the penalty of the recipe {self.recipe.name!r} is about a target: pass a "
                "`target_l0`."
            )
        if self.recipe.steer_from and self.target_l0 is None:
            raise ValueError(
                "`steer_from` of a recipe is for runs that are steered to a target, and this one "
                "has none: pass a `target_l0`, or leave it out."
            )
        if isinstance(self.screen, bool | np.bool_):
            object.__setattr__(self, "screen", "int8" if self.screen else None)
        known_name = isinstance(self.screen, str) and self.screen in get_args(Precision)
        if self.screen is not None and not known_name:
            known = " or ".join(map(repr, get_args(Precision)))
            raise ValueError(f"`screen` should be {known}, or a bool, but is {self.screen!r}.")
        if self.screen is not None and not self.visits_entries_only():
            raise ValueError(
                "`screen` is for runs that skip the zeros, and this one takes dense products: "
                f"{self._why_dense()}. Leave it out."
            )

    def _why_dense(self) -> str:
        """Why the run does not skip the zeros."""
        if not self.sparse:
            return "`sparse` is False"
        if not losses.visits_entries_only(self.recipe):
            return f"the recipe {self.recipe.name!r} needs the dense latent"
        few = f"more than one in {round(1 / CROSSOVER)} of {self.features}"
        if self.target_l0 is None:
            return (
                f"without a `target_l0`, {self._wanted():g} open features are reckoned with, {few}"
            )
        return f"{self._wanted():g} open features are {few}"

    def _wanted(self) -> float:
        # Without a target nobody knows how many will be open; in a small latent lists cannot pay.
        return _LISTED if self.target_l0 is None else self.target_l0

    def visits_entries_only(self) -> bool:
        """Whether the run skips the zeros."""
        few = self._wanted() <= self.features * CROSSOVER
        return self.sparse and few and losses.visits_entries_only(self.recipe)

    def controller(self) -> L0Controller | None:
        """What steers λ, if anything does."""
        if self.target_l0 is None:
            return None
        return steering(program_of(self), self.target_l0, self.recipe.coefficient)


class Program(NamedTuple):
    """What the program of a step depends on: runs that agree in it compile it once."""

    recipe: Recipe
    """Without what no step reads: `UNREAD`."""
    features: int
    steps: int
    sparse: bool
    """Whether the zeros are skipped."""
    screen: Precision | bool | None


# What of a recipe no step reads: the start, the data and revival have it, or, of λ, an operand.
UNREAD: dict[str, Any] = {
    "name": "", "initial_threshold": 0.0, "input_scaling": 1.0, "initialisation": "tied_unit",
    "initial_norm": 1.0, "coefficient": 1.0, "batch_size": 1, "resample_every": 0.0,
    "resample_until": 1.0, "resample_from": "examples",
}  # fmt: skip


@functools.lru_cache(maxsize=128)
def program_of(settings: Settings) -> Program:
    """The part of the settings that a step is compiled for."""
    recipe = dataclasses.replace(settings.recipe, **UNREAD)
    sparse = settings.visits_entries_only()
    return Program(recipe, settings.features, settings.steps, sparse, settings.screen)


def steering(program: Program, target: Array | float, first: float = 1.0) -> L0Controller | None:
    """What steers λ from its first value to a target, which may be traced; None where nothing does.

    Only the controller's first state depends on the first value.
    """
    recipe = program.recipe
    if recipe.penalty == "quadratic_l0":
        return None
    half, ramp = program.features / 2, recipe.warmup_steps(program.steps)

    def path(updates: Array) -> Array:
        if not ramp or recipe.steer_from:
            return jnp.asarray(target, jnp.float32)
        ratio = jnp.minimum(target / half, 1.0)
        return target / ratio * ratio ** jnp.minimum(updates / ramp, 1.0)

    return l0_target_controller(path, initial_coefficient=first)


def flag(value: object, name: str) -> bool:
    """A truth value, which a user passes under that name.

    Raises:
      TypeError: it is none.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    shape = getattr(value, "shape", None)  # an array would fill the screen
    found = f"{value!r:.80}" if shape is None else f"an array of shape {shape}"
    raise TypeError(f"`{name}` should be True or False, but is {found}.")


class TrainState(NamedTuple):
    """All that changes during a run, a pytree."""

    weights: Weights
    """The parameters."""
    optimizer: Any
    """The state of the recipe's optimiser."""
    controller: ControllerState
    """What steers λ; where λ follows a schedule, its coefficient alone means something."""
    step: Array
    """Number of steps done, int32."""
    silent: Array
    """(m,), int32: for how many steps each feature was open in no example."""
    skip: Array | None = None
    """(d, d_out): a transcoder's skip connection, of scaled inputs to scaled targets, if any."""


class Asked(NamedTuple):
    """What may differ between runs that are trained at once."""

    target: Array | float | None
    """The L0 to reach, if any."""
    coefficient: Array | float
    """λ where it is not steered; where it is, the first one."""


def initial_state(
    settings: Settings,
    sample: np.ndarray,
    weights: Weights | None = None,
    targets: np.ndarray | None = None,
    skip: np.ndarray | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      settings: size, length and recipe.
      sample: some scaled inputs, (n, d), that the first weights are taken from.
      weights: what to begin with, for scaled inputs; None: as the recipe says.
      targets: what a transcoder should make of the sample, scaled, (n, d_out); None: the sample.
      skip: (d, d_out), the skip connection to begin with, where the settings have one; None: 0.

    Returns:
      A `TrainState`.
    """
    if weights is None:
        key = jax.random.key(settings.seed)
        weights = initial_weights(key, settings.features, sample, settings.recipe, targets)
    else:
        # Copies: a training step donates its state.
        weights = Weights(*(jnp.array(value) for value in weights))
    begin: Array | None = None
    if settings.skip:
        ends = weights.encoder.shape[1], weights.decoder.shape[1]
        begin = jnp.zeros(ends, jnp.float32) if skip is None else jnp.array(skip)
    controller = settings.controller() or _no_controller()
    optimizer = settings.recipe.optimizer(settings.steps).init(_parameters(weights, begin))
    silent = jnp.zeros((settings.features,), jnp.int32)
    step = jnp.zeros((), jnp.int32)
    return TrainState(weights, optimizer, controller.init(), step, silent, begin)


def _parameters(weights: Weights, skip: Array | None) -> Any:
    """What the optimiser changes; without a skip connection the weights alone."""
    return weights if skip is None else (weights, skip)


def _weights_and_skip(parameters: Any) -> tuple[Weights, Array | None]:
    return (parameters, None) if isinstance(parameters, Weights) else parameters


def train_step(
    state: TrainState,
    x: Float[Array, "batch d"],
    scale: Float[Array, ""] | float,
    settings: Settings,
    targets: Float[Array, "batch d_out"] | None = None,
    output_scale: Float[Array, ""] | float = 1.0,
) -> tuple[TrainState, losses.Terms]:
    """One step. Pure, and jitted; donates `state`.

    Settings that differ in seed, target, λ, name or start share its program (`Program`).

    Args:
      state: the state before the step, whose buffers are used for the one after it.
      x: an unscaled batch, (batch, d).
      scale: what inputs are multiplied with; see `input_scale`.
      settings: size, length and recipe.
      targets: what a transcoder should make of the batch, unscaled, (batch, d_out); None: the
        batch itself.
      output_scale: what targets are multiplied with.

    Returns:
      The state after the step, and the loss's `Terms` before it.
    """
    return _advance(state, x, scale, asked(settings), program_of(settings), targets, output_scale)


def asked(settings: Settings) -> Asked:
    """What the settings ask for."""
    target = None if settings.target_l0 is None else float(settings.target_l0)
    return Asked(target, float(settings.recipe.coefficient))


def advance(
    state: TrainState,
    x: Array,
    scale: Array | float,
    asked: Asked,
    program: Program,
    targets: Array | None,
    output_scale: Array | float,
) -> tuple[TrainState, losses.Terms]:
    """One step, of what is asked for; x and targets are unscaled."""
    recipe = program.recipe
    x, y = x * scale, None if targets is None else targets * output_scale
    controller = None if asked.target is None else steering(program, asked.target)
    coefficient = state.controller.coefficient
    if controller is None or recipe.steer_from:
        # The recipe's own λ is 1 here.
        scheduled = jnp.asarray(
            asked.coefficient * recipe.coefficient_schedule(program.steps)(state.step)
        )
        late = state.step >= int(recipe.steer_from * program.steps)
        coefficient = scheduled if controller is None else jnp.where(late, coefficient, scheduled)

    def objective(parameters: Any) -> tuple[Array, losses.Terms]:
        weights, skip = _weights_and_skip(parameters)
        return losses.loss(
            weights,
            x,
            coefficient,
            recipe,
            targets=y,
            skip=skip,
            target_l0=asked.target,
            sparse=program.sparse,
            screen=program.screen,
        )

    parameters = _parameters(state.weights, state.skip)
    gradient, terms = jax.grad(objective, has_aux=True)(parameters)
    of_weights, of_skip = _weights_and_skip(gradient)
    of_weights = constrained_gradient(of_weights, state.weights, recipe)
    updates, optimizer = recipe.optimizer(program.steps).update(
        _parameters(of_weights, of_skip), state.optimizer, parameters
    )
    weights, skip = _weights_and_skip(optax.apply_updates(parameters, updates))
    weights = constrained(weights, recipe)
    steered = state.controller._replace(coefficient=coefficient.astype(jnp.float32))
    if controller is not None:
        _, steered = controller.update(terms.l0, steered)
    silent = jnp.where(terms.opened, 0, state.silent + 1)
    return TrainState(weights, optimizer, steered, state.step + 1, silent, skip), terms


_advance = partial(jax.jit, static_argnames="program", donate_argnames="state")(advance)


def revives_after(step: int, settings: Settings) -> bool:
    """Whether silent features start again after that many steps."""
    every = settings.recipe.resampling_steps(settings.steps)
    last = int(settings.recipe.resample_until * settings.steps)
    return bool(every) and step % every == 0 and step <= last


@partial(jax.jit, static_argnames="settings", donate_argnames="state")
def revive(
    state: TrainState,
    x: Array,
    scale: Array | float,
    settings: Settings,
    targets: Array | None = None,
    output_scale: Array | float = 1.0,
) -> TrainState:
    """Features that were silent for the recipe's period start again, with fresh moments of Adam.

    Args:
      state: the state, whose buffers are used for the new one.
      x: an unscaled batch, (batch, d), of which the examples are taken.
      scale: what inputs are multiplied with.
      settings: size, length and recipe.
      targets: as in `train_step`.
      output_scale: as in `train_step`.
    """
    recipe = settings.recipe
    silent = state.silent >= recipe.resampling_steps(settings.steps)
    x = jnp.asarray(x) * scale
    y = None if targets is None else jnp.asarray(targets) * output_scale
    pi = losses.pre_activations(state.weights, x)
    features = jnp.where(pi > state.weights.threshold, pi, 0)
    if state.skip is not None and y is not None:
        y = y - x @ state.skip  # what is left to the features
    residual = (x if y is None else y) - losses.reconstruct(state.weights, features)
    key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    weights = revived(state.weights, silent, x, residual, key, recipe, y)

    def forgotten(moments: Any) -> Any:
        if not isinstance(moments, Weights):
            return moments
        rows = [jnp.where(silent.reshape(-1, *[1] * (v.ndim - 1)), 0, v) for v in moments[:4]]
        return Weights(*rows, moments.decoder_bias)  # type: ignore[call-arg]

    optimizer = jax.tree.map(
        forgotten, state.optimizer, is_leaf=lambda node: isinstance(node, Weights)
    )
    return state._replace(
        weights=weights, optimizer=optimizer, silent=jnp.where(silent, 0, state.silent)
    )


def run(
    rows: Rows,
    settings: Settings,
    *,
    start: Start | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    checkpoint_every: int = 500,
    fresh: bool = False,
    mesh: Mesh | None = None,
    on_read: Callable[[int], None] | None = None,
    on_step: Callable[[int, dict[str, float] | None], None] | None = None,
) -> Result:
    """A training run, from its settings: what `train` is made of.

    Args:
      rows: the examples, unscaled; with their targets, where `train` has any. All are read once
        before the start, to be checked and measured, which several processes share.
      settings: size, length and recipe.
      start: what to begin with, which `train` takes from a model; None: as the recipe says.
      checkpoint_folder: where to keep checkpoints, and to look for one to resume from. The newest
        intact one is taken, and a warning names each that is damaged. One of a run of fewer steps
        is taken up, too, where all else agrees: the run is extended, and goes on with the schedules
        of its new length.
      checkpoint_every: steps between two checkpoints.
      fresh: whether to remove the checkpoints in the folder first, whatever run they are of.
      mesh: the devices to train on, with the axes "examples", "features" or both, automatic ones;
        of several processes, too, each of which calls this with the same arguments, on one folder
        of checkpoints. Each then reads the rows and writes the part of a checkpoint that its own
        devices hold (docs/many_processes.md). A checkpoint goes on with any mesh. None: one device.
      on_read: called while the rows are checked, with the number of rows since the last call.
      on_step: called after every step with the number of steps done, and with a row of the history
        where one was taken (else None).

    Returns:
      A `Result`. A warning says where it ended far from the L0 that was asked for, with a negative
      explained variance, or with thresholds that hardly moved.

    Raises:
      ValueError: rows that are not finite or all the same; a skip connection without targets; a
        batch or a dictionary that the mesh
        cannot share equally; a checkpoint of another run (the message
        says what differs, and nothing is overwritten); a folder that another run writes to.
      FloatingPointError: the loss is not finite any more; the message says at which step.
      MemoryError: the run would need more memory than is free.
      OSError: checkpoints cannot be written.
    """
    check_interval(checkpoint_every)
    fresh = flag(fresh, "fresh")
    check_skip(settings, rows)
    check_memory(settings, rows)
    size = settings.recipe.batch_size
    rows.check_batch(size)
    devices = Devices(mesh)
    devices.check(size, settings.features)
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoint_folder is not None:
            # Locked, and tried by writing, before the data are read, which can take long.
            store = stack.enter_context(Checkpoints(checkpoint_folder, devices.processes))
        found = checked_statistics(rows, on_read, devices.processes)
        if store is not None:
            if fresh:
                store.clear()
            store.identity = identity_of(settings, rows, found[0].fingerprint)
            if start is not None:
                store.identity = {**store.identity, "start": start.fingerprint()}
        return _run(rows, settings, found, start, store, devices, checkpoint_every, on_step)


def check_skip(settings: Settings, rows: Rows) -> None:
    """Raises ValueError where a skip connection would pass the features by."""
    if settings.skip and not isinstance(rows, Pairs):
        raise ValueError(
            "`skip` is for a transcoder: in an autoencoder, what passes the features by would be "
            "the rows themselves. Pass `targets`, or leave it out."
        )


def scales_of(found: list[Statistics], rows: Rows, recipe: Recipe) -> tuple[float, float]:
    """What inputs are multiplied with, and what is to be reconstructed: the same number for one."""
    scales = [
        input_scale(f.mean_norm, f.mean_square_norm, part.array.shape[1], recipe)
        for f, part in zip(found, rows._parts, strict=True)
    ]
    return scales[0], scales[-1]


def off_centre(found: list[Statistics], rows: Rows) -> list[str]:
    """Sentences on parts whose mean is far from 0, beside how far rows are from it."""
    sentences = []
    for part, f in zip(rows._parts, found, strict=True):
        ratio = math.sqrt(max(0.0, f.mean_square_norm - f.variance) / f.variance)
        if ratio > _OFF_CENTRE:
            sentences.append(
                f"{part.name} lies off centre: the norm of the mean is {ratio:.3g} times the root "
                "mean square distance from it, and features are found badly where that is more "
                f"than about {_OFF_CENTRE:g}. Subtract the mean from all rows (array - "
                "array.mean(axis=0)), here and wherever the model is used."
            )
    return sentences


def check_interval(checkpoint_every: int) -> None:
    """Raises where that is no number of steps."""
    whole = isinstance(checkpoint_every, Integral) and not isinstance(checkpoint_every, bool)
    if not whole or checkpoint_every < 1:
        raise ValueError(
            f"`checkpoint_every` should be a whole number ≥ 1, but is {checkpoint_every!r}."
        )


def checked_statistics(
    rows: Rows, on_read: Callable[[int], None] | None, processes: Processes | None = None
) -> list[Statistics]:
    """What a pass over the rows finds, shared among the processes: of them, and of targets.

    Raises ValueError where there is no variance.
    """
    statistics = rows._statistics(processes or Processes(), on_read)
    for part, found in zip(rows._parts, statistics, strict=True):
        if not found.variance > 1e-12 * found.mean_square_norm:
            what = "one row only" if rows.training_rows == 1 else "the same values in all rows"
            raise ValueError(f"{part.name} has {what}: there is no variance to reconstruct.")
    return statistics


def _run(
    rows: Rows,
    settings: Settings,
    found: list[Statistics],
    start: Start | None,
    store: Checkpoints | None,
    devices: Devices,
    checkpoint_every: int,
    on_step: Callable[[int, dict[str, float] | None], None] | None,
) -> Result:
    size = settings.recipe.batch_size
    scale, output_scale = scales_of(found, rows, settings.recipe)
    probe, wanted = rows.split(devices.batch(rows, 0, size))
    probe = probe * np.float32(scale)
    if wanted is not None:
        wanted = wanted * np.float32(output_scale)
    weights: Weights | None = None
    skip: np.ndarray | None = None
    start_threshold: jax.Array | float = settings.recipe.initial_threshold
    if start is not None:
        unit_norm = settings.recipe.unit_norm_decoder
        weights = start.scaled(scale, output_scale, unit_norm=unit_norm)
        skip = start.scaled_skip(scale, output_scale)
        start_threshold = jnp.asarray(weights.threshold)
    elif devices.processes.first:
        for sentence in off_centre(found, rows):
            warn(sentence)
    given = probe, weights, wanted, skip

    def check_loss(step: int, loss: Any) -> None:
        # That of the weights before the step: of step 1, of those at the start.
        at_first = not_finite_at_first(settings.recipe, scale, start)
        _check_finite(loss, at_first if step == 1 else _not_finite_at(step))

    def first(given):
        return initial_state(settings, *given)

    shapes = devices.shapes(first, given, settings.features)
    state: TrainState | None = None
    variance = found[-1].variance * output_scale**2
    history = np.zeros((0, len(HISTORY)))
    if store is not None:
        restored, skipped = store.restore((shapes, history))
        if restored is not None:
            state, history = restored
        for sentence in skipped if devices.processes.first else []:
            warn(sentence)
    if state is None:
        state = devices.made(first, given, shapes)
    resumed_from = int(state.step)
    before: tuple[int, Any] | None = None
    for step in range(resumed_from, settings.steps):
        x, y = rows.split(devices.batch(rows, step, size))
        state, terms = train_step(state, x, scale, settings, y, output_scale)
        # Looked at one step late, when it is there anyway: asking now would stop the pipeline.
        if before is not None:
            check_loss(*before)
        before = step + 1, terms.reconstruction
        if revives_after(step + 1, settings):
            state = revive(state, x, scale, settings, y, output_scale)
        entry = None
        last = step + 1 == settings.steps
        if (step + 1) % settings.log_every == 0 or last:
            check_loss(*before)
            seen = measure(state.weights, probe, start_threshold, settings.recipe.surrogate)
            fixed: list[Any] = [step + 1, terms.l0, terms.reconstruction / variance]
            fixed += [state.controller.coefficient, *seen]
            history = np.concatenate([history, [[float(v) for v in fixed]]])
            entry = dict(zip(HISTORY, history[-1].tolist(), strict=True))
        if last or (store is not None and (step + 1) % checkpoint_every == 0):
            # Weights of after the step, which its loss says nothing about.
            check_loss(*before)
            parameters = state.weights, state.skip
            _check_finite(_size_of(parameters), _not_finite_at(step + 1))
            if store is not None:
                state = devices.placed(state, shapes)
                store.save(step + 1, (state, history))
        if on_step:
            on_step(step + 1, entry)
    columns = dict(zip(HISTORY, history.T, strict=True))
    for sentence in shortcomings(columns, settings, settings.target_l0):
        if devices.processes.first:
            warn(sentence)
    ended, passed = devices.whole((state.weights, state.skip))
    return Result(ended, scale, columns, resumed_from, found[0].fingerprint, output_scale, passed)


def shortcomings(
    history: dict[str, np.ndarray], settings: Settings, target: float | None
) -> list[str]:
    """Sentences on what a run did not reach, from the columns of its history."""
    found = []
    l0 = float(history["l0"][-5:].mean())
    if target is not None and not abs(l0 / target - 1) <= _L0_TOLERANCE:
        if settings.recipe.penalty == "quadratic_l0":
            advice = "a larger coefficient brings it nearer"
        else:
            first, last = settings.recipe.coefficient, float(history["coefficient"][-1])
            advice = (
                "pass more steps, or a larger learning rate, or a coefficient nearer to the one "
                f"that this L0 needs (λ began at {first:.2g} and ended at {last:.2g})"
            )
        found.append(
            f"L0 is {l0:.3g} at the end of the run, and {target:.3g} was asked for: {advice}."
        )
    lost = float(history["reconstruction"][-5:].mean())
    if lost > 1:
        found.append(
            f"the explained variance is {1 - lost:.2g} at the end of the run, which is below 0: "
            "the mean of what is reconstructed would do better. Pass more steps, a larger L0, "
            "or another learning rate."
        )
    moved, reach = float(history["threshold_distance"][-1]), settings.recipe.surrogate.bandwidth
    if settings.steps >= _LONG_ENOUGH and moved < _STILL * reach:
        hits = float(history["window_share"][-5:].mean()) * settings.recipe.batch_size
        found.append(
            f"the thresholds moved by {moved:.2g} on average, which is little beside the bandwidth "
            f"of {reach:.2g}: {hits:.2g} entries per feature and batch lie in the surrogate's "
            "window, and below about 1 nothing is learned. Pass a larger bandwidth, or larger "
            "batches."
        )
    return found


def _check_finite(value: Any, sentence: str) -> None:
    if not math.isfinite(float(value)):
        raise FloatingPointError(sentence)


@jax.jit
def _size_of(parameters: Any) -> Array:
    """The sum of all magnitudes, which is finite only where all are."""
    return sum((jnp.sum(jnp.abs(v)) for v in jax.tree.leaves(parameters)), jnp.zeros(()))


def _not_finite_at(step: int) -> str:
    return (
        f"the loss is not finite any more at step {step}: the run was stopped there. Pass a "
        "smaller learning rate."
    )


def not_finite_at_first(recipe: Recipe, scale: float, start: Start | None) -> str:
    """What is said of a loss that the first weights have, which no learning rate changes."""
    begun = (
        "the loss is not finite at step 1, before anything was learned: with inputs multiplied by "
        f"{scale:.3g}, "
    )
    if start is not None:
        return (
            f"{begun}the weights of `start` give numbers that float32 does not have. Pass a "
            "recipe with another `input_scaling`."
        )
    return (
        f"{begun}encoder rows of norm {recipe.initial_norm:.3g} give numbers that float32 does not "
        "have. Pass a recipe with another `input_scaling` or `initial_norm`."
    )


def memory_needed(settings: Settings, dimension: int, output_dimension: int | None = None) -> int:
    """An estimate of the bytes that a run needs at its fullest.

    Five copies of the weights in a step (themselves, two moments of Adam, gradient and update),
    three in a checkpoint that is being written; and three arrays of the size of the latent.
    """
    to = dimension if output_dimension is None else output_dimension
    weights = 4 * (settings.features * (dimension + to + 2) + to + settings.skip * dimension * to)
    latent = 4 * settings.recipe.batch_size * settings.features
    return 8 * weights + 3 * latent


def memory_free() -> int | None:
    """Bytes of memory that a process can still have, where the system says so (Linux)."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(text.partition("MemAvailable:")[2].split()[0]))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError, IndexError):
        pass  # another system, or one that hides it
    return min(found) if found else None


def check_memory(settings: Settings, rows: Rows, runs: int = 1) -> None:
    """Raises MemoryError where runs need more memory than there is: the kernel would end them."""
    if jax.default_backend() != "cpu":
        return
    needed = runs * memory_needed(settings, rows.dimension, rows.output_dimension)
    free = memory_free()
    if free is not None and needed > free:
        what = "a run" if runs == 1 else f"a sweep of {runs} runs"
        raise MemoryError(
            f"{what} with {settings.features:,} features of dimension {rows.dimension:,} in "
            f"batches of {settings.recipe.batch_size:,} needs about {needed / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are free. Pass fewer features, or a smaller batch "
            "size."
        )


@partial(jax.jit, static_argnames="surrogate")
def measure(
    weights: Weights, x: Array, initial_threshold: Array | float, surrogate: Surrogate
) -> tuple[Array, ...]:
    """The columns of the history from "silent_share" on, for scaled inputs x."""
    pi = losses.pre_activations(weights, x)
    seen = diagnostics(pi, weights.threshold, initial_threshold, surrogate)
    quantiles = jnp.quantile(weights.threshold, jnp.array(_QUANTILES))
    return seen.dead_share, seen.window_share, seen.threshold_distance, *quantiles


def _no_controller() -> L0Controller:
    """Something with a controller's state, where λ follows a schedule."""
    return l0_target_controller(1.0, initial_coefficient=1.0)


def identity_of(settings: Settings, rows: Rows, fingerprint: str) -> dict[str, str]:
    """What has to agree between a checkpoint and the run that resumes from it."""
    # Checkpoints from before these were settings go on without.
    later = {"screen": None, "skip": False, "recipe.initial_norm": 1.0, "recipe.steer_from": 0.0}
    values = {name: value for name, value in vars(settings).items() if name != "recipe"}
    values |= {f"recipe.{name}": value for name, value in vars(settings.recipe).items()}
    own = {k: repr(v) for k, v in values.items() if k not in later or v != later[k]}
    data = {"dimension": repr(rows.dimension), "data": fingerprint, "order": rows.order}
    if isinstance(rows, Pairs):
        data["output dimension"] = repr(rows.output_dimension)
    aside = {"rows kept aside": repr(len(rows) - rows.training_rows)}
    return {**own, **data, **aside, "data seed": repr(rows.seed)}
