"""A feedback controller for the sparsity coefficient: mean L0 goes to a target, not λ to a guess.

A fixed coefficient λ says little about how sparse the result is, and saturates: over four decades
of λ the mean L0 of one model went 478, 124, 36, 26.6, 26.0 (SAELens#719). Here λ is the output of a
proportional-integral controller whose set point is the L0 that is wanted.
"""

import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class ControllerState(NamedTuple):
    """The state of an `L0Controller`: four scalars, a pytree that belongs in a checkpoint."""

    coefficient: jax.Array
    """λ for the next step, float32."""
    smoothed_l0: jax.Array
    """Exponential moving average of the measured mean L0, float32; 0 before the first update."""
    error: jax.Array
    """log(smoothed L0 / target) at the last update, float32."""
    updates: jax.Array
    """Number of updates so far, int32."""


class L0Controller(NamedTuple):
    """A pair of pure functions, as in optax: a state from nothing, a state from a measurement."""

    init: Callable[[], ControllerState]
    """Returns the first state."""
    update: Callable[[jax.Array, ControllerState], tuple[jax.Array, ControllerState]]
    """`update(l0, state)` returns λ for the next step and the state that holds it."""


def l0_target_controller(
    target: float | Callable[[jax.Array], jax.Array],
    *,
    initial_coefficient: float,
    integral_gain: float = 0.005,
    proportional_gain: float = 0.5,
    smoothing: float = 0.9,
    largest_step: float = 0.05,
) -> L0Controller:
    """Steers λ so that the mean L0 reaches `target`.

    With e = log(smoothed L0 / target), clipped to [-1, 1], each update makes

        log λ += integral_gain · e + proportional_gain · (e − e of the update before),

    a change that is itself clipped to ±`largest_step`. The integral term removes the offset that a
    fixed λ would leave; the proportional one damps the oscillation that thresholds cause by
    answering a change of λ late. Working on logarithms makes the gains independent of the units of
    λ and of the size of L0; both clips keep λ from running away while L0 is still far off.

    All of it is pure and of fixed shape: use it inside a jitted step, or in `lax.scan`.

    Args:
      target: the mean number of open features per example, greater than 0; or a schedule, a
        function from the number of updates so far to that number (optax's schedules are such).
      initial_coefficient: λ before the first measurement, greater than 0.
      integral_gain: change of log λ per update for an e of 1. No unit.
      proportional_gain: change of log λ per change of e. No unit.
      smoothing: decay of the moving average of L0, in [0, 1).
      largest_step: largest change of log λ in one update.

    Returns:
      An `L0Controller`, the pair (init, update).

    Raises:
      ValueError: an argument is out of its range; the message names it.

    >>> controller = l0_target_controller(20.0, initial_coefficient=1e-3)
    >>> state = controller.init()
    >>> coefficient, state = controller.update(jnp.float32(80.0), state)  # too many are open
    >>> bool(coefficient > 1e-3)
    True

    Source: the proportional-integral law in its velocity form (Åström and Hägglund 1995, ch. 3).
    """
    if not callable(target):
        _require(_positive(target), "target", target, "a positive number, or a schedule")
    first = initial_coefficient
    _require(_positive(first), "initial_coefficient", first, "a number greater than 0")
    _require(_positive(integral_gain), "integral_gain", integral_gain, "a number greater than 0")
    _require(proportional_gain >= 0, "proportional_gain", proportional_gain, "a number ≥ 0")
    _require(0 <= smoothing < 1, "smoothing", smoothing, "a number in [0, 1)")
    _require(_positive(largest_step), "largest_step", largest_step, "a number greater than 0")

    def init() -> ControllerState:
        # Separate arrays, so that a step may donate its state.
        first, l0, error = (jnp.full((), v, jnp.float32) for v in (initial_coefficient, 0, 0))
        return ControllerState(first, l0, error, jnp.zeros((), jnp.int32))

    def update(l0: jax.Array, state: ControllerState) -> tuple[jax.Array, ControllerState]:
        first = state.updates == 0
        l0 = jnp.asarray(l0, jnp.float32)
        smoothed = jnp.where(first, l0, smoothing * state.smoothed_l0 + (1 - smoothing) * l0)
        wanted = target(state.updates) if callable(target) else target
        # An L0 of zero has no logarithm; a thousandth of a feature is far enough below any target.
        error = jnp.clip(jnp.log(jnp.maximum(smoothed, 1e-3) / wanted), -1.0, 1.0)
        change = integral_gain * error
        change += proportional_gain * jnp.where(first, 0.0, error - state.error)
        change = jnp.clip(change, -largest_step, largest_step)
        coefficient = (state.coefficient * jnp.exp(change)).astype(jnp.float32)
        error = error.astype(jnp.float32)
        return coefficient, ControllerState(coefficient, smoothed, error, state.updates + 1)

    return L0Controller(init, update)


def _positive(value: object) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and 0 < float(value) < math.inf  # type: ignore[arg-type]


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` should be {wanted}, but is {value!r}.")
