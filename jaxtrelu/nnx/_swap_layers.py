"""The activations of a model, found and exchanged for calibrated ones in one forward pass."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrelu import theory
from jaxtrelu._activation import shifted_relu, thresholded_relu
from jaxtrelu.nnx._jump_relu import JumpReLU
from jaxtrelu.nnx._thresholded_relu import ThresholdedReLU

Which = Callable[[tuple, Any], bool]
Forward = Callable[[Any, Any], Any]

_FUNCTIONS = (
    jax.nn.relu,
    jax.nn.gelu,
    jax.nn.silu,
    jax.nn.leaky_relu,
    jax.nn.elu,
    jax.nn.celu,
    jax.nn.mish,
    thresholded_relu,
    shifted_relu,
)
_MODULES = (nnx.PReLU, ThresholdedReLU, JumpReLU)


class SwappedLayer(NamedTuple):
    """An activation that was exchanged or calibrated."""

    path: str
    """Where in the model, such as ``layers.1``."""
    was: str
    """What it was."""
    threshold: jax.Array
    """θ, one number or one per channel, in the units of the pre-activations."""
    zeros: float
    """Share of zeros on the sample, with the thresholds in front of it in place."""
    entries: int
    """How many values went through it."""
    error: float | None = None
    """With ``error=``: the relative error of the next layer's output on the sample."""


# Which values are activations.


def _function_of(value: Any) -> Any:
    """The function itself, out of a partial."""
    return value.func if isinstance(value, functools.partial) else value


def is_activation(path: tuple, value: Any) -> bool:
    """What `swap_activations` exchanges unless told otherwise."""
    del path
    function = _function_of(value)
    return isinstance(value, _MODULES) or any(function is known for known in _FUNCTIONS)


def is_own(path: tuple, value: Any) -> bool:
    del path
    return isinstance(value, ThresholdedReLU)


def keep_layer(value: Any, channels: int) -> Any:
    del channels
    return value


def name_of(value: Any) -> str:
    function = _function_of(value)
    name = getattr(function, "__name__", None)
    return str(name) if name else type(value).__name__


class Place(NamedTuple):
    """Where an activation is: an attribute of a module."""

    owner: nnx.Module
    name: str
    path: str
    value: Any


def places_of(model: nnx.Module, which: Which) -> list[Place]:
    found = []
    for path, owner in nnx.iter_graph(model):
        if not isinstance(owner, nnx.Module) or isinstance(owner, _MODULES):
            continue
        for name, value in vars(owner).items():
            if not name.startswith("_pytree__") and which((*path, name), value):
                text = ".".join(str(part) for part in (*path, name))
                if not callable(value) or isinstance(value, nnx.Variable):
                    kind = type(value).__name__
                    raise TypeError(f"`which` chooses {text}, a {kind}, which is no activation.")
                found.append(Place(owner, name, text, value))
    return found


# One forward pass, in which activations are exchanged as they are reached.


class Probe(nnx.Module):
    """Stands for an activation during one forward pass."""

    def __init__(self, reached: Callable[[Any], Any]):
        self.reached = reached

    def __call__(self, x: Any) -> Any:
        return self.reached(x)


def calibrated(
    model: nnx.Module,
    sample: Any,
    share: float,
    forward: Forward,
    which: Which,
    make: Callable[[Any, int], ThresholdedReLU],
) -> tuple[SwappedLayer, ...]:
    """Exchanges what `which` chooses for what `make` makes of it, calibrated; in place."""
    layers: dict[str, SwappedLayer] = {}
    new: dict[str, Any] = {}

    def reached(place: Place, x: Any) -> Any:
        check_input(place, x, place.path in new)
        check_finite(place, x)
        layer = make(place.value, x.shape[-1])
        layer.threshold[...] = _threshold(place, x, share, layer.threshold[...])
        y = layer(x)
        new[place.path] = layer
        layers[place.path] = SwappedLayer(
            place.path,
            name_of(place.value),
            jnp.asarray(layer.threshold_value),
            float(jnp.mean(y == 0)),
            y.size,
        )
        return y

    with_probes(model, places_of(model, which), lambda: forward(model, sample), reached, new)
    check_found(layers)
    return tuple(layers.values())


def check_found(layers: Any) -> None:
    if not layers:
        raise ValueError(
            "no activation was found that `model` applies to the sample. Keep it as an attribute, "
            "self.activation = nnx.relu, or in an nnx.Sequential, and say `which=` if it is none "
            "of those that are known."
        )


def with_probes(
    model: nnx.Module,
    places: list[Place],
    run: Callable[[], Any],
    reached: Callable[[Place, Any], Any],
    new: dict[str, Any],
) -> None:
    """Runs with a probe at each place, and afterwards leaves there what is in `new`, if anything.

    After an error everything is as it was.
    """
    done = False
    for place in places:
        probe = Probe(functools.partial(reached, place))
        setattr(place.owner, place.name, nnx.data(probe))
    try:
        run()
        done = True
    finally:
        for place in places:
            put(place, new.get(place.path, place.value) if done else place.value)


def put(place: Place, value: Any) -> None:
    is_module = isinstance(value, nnx.Module)
    setattr(place.owner, place.name, nnx.data(value) if is_module else nnx.static(value))


def check_input(place: Place, x: Any, seen: bool) -> None:
    if isinstance(x, jax.core.Tracer):
        raise ValueError(
            f"{place.path} is inside of a transformation (jax.jit, nnx.scan, …), where its "
            "threshold cannot be set from what arrives. Pass forward= that runs step by step."
        )
    if seen:
        raise ValueError(
            f"{place.path} is applied more than once in a call, and one threshold cannot be "
            "calibrated at two places. Give each place an activation of its own."
        )
    if not jnp.ndim(x):
        raise ValueError(f"{place.path} is applied to a scalar, which has no channels.")
    if not jnp.size(x):
        raise ValueError(
            f"{place.path} is applied to an array of shape {jnp.shape(x)}, which is empty: pass a "
            "sample that has rows."
        )


def check_finite(place: Place, x: jax.Array) -> None:
    if not jnp.isfinite(x).all():
        raise ValueError(
            f"at {place.path}: pre-activations should be finite, and hold no NaN. Look at the "
            "sample, and at the weights before that place."
        )


def _threshold(place: Place, x: jax.Array, share: float, like: jax.Array) -> jax.Array:
    """The quantile, but not below 0, where a trained ReLU closes already."""
    axes = tuple(range(x.ndim - 1)) if like.ndim else None
    try:
        found = theory.quantile_threshold(x.astype(jnp.float32), share, axis=axes)
    except ValueError as error:
        raise ValueError(f"at {place.path}: {error}") from None
    return jnp.maximum(found, 0).astype(like.dtype)


def zero_counts(model: nnx.Module, sample: Any, forward: Forward) -> dict[str, tuple[int, int]]:
    """Zeros and entries of each thresholded layer, with the thresholds as they are."""
    counts: dict[str, tuple[int, int]] = {}

    def reached(place: Place, x: Any) -> Any:
        check_input(place, x, place.path in counts)
        y = place.value(x)
        if jnp.isnan(y).any():
            raise ValueError(f"NaN arrives at {place.path}, of which no share of zeros is known.")
        counts[place.path] = int(jnp.sum(y == 0)), y.size
        return y

    with_probes(model, places_of(model, is_own), lambda: forward(model, sample), reached, {})
    return counts
