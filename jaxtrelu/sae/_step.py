"""A training step, pure and compiled, and the state that it changes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sae import _losses as losses
from jaxtrelu.sae._controller import ControllerState, L0Controller, l0_target_controller
from jaxtrelu.sae._diagnostics import diagnostics
from jaxtrelu.sae._settings import Asked, Program, Settings, asked, program_of, steering
from jaxtrelu.sae._weights import (
    Weights,
    constrained,
    constrained_gradient,
    initial_weights,
    revived,
)

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
