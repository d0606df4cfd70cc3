"""Activations exchanged for thresholds of a wanted error in the output of the next layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrelu.nnx._swap_layers import (
    Forward,
    Place,
    Probe,
    SwappedLayer,
    Which,
    check_finite,
    check_found,
    check_input,
    name_of,
    places_of,
    put,
    with_probes,
)
from jaxtrelu.nnx._thresholded_relu import ThresholdedReLU

# What counts as the layer behind an activation.
_LINEAR = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv)
# Of the interval of thresholds; each is a forward pass up to the next layer.
_HALVINGS = 14


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass where enough is known)
    """Carries the output of the layer that a forward pass was run for."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output


class _Watched(nnx.Module):
    """Stands for a linear layer during a forward pass, and reports what comes out of it."""

    def __init__(self, layer: Any, report: Callable[[Any], None]):
        self.layer, self.report = layer, report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.layer(*args, **kwargs)
        self.report(output)
        return output

    def __getattr__(self, name: str) -> Any:
        """What else the model reads of the layer, such as its kernel."""
        return getattr(object.__getattribute__(self, "layer"), name)


def calibrated_to_error(
    model: nnx.Module,
    sample: Any,
    error: float,
    forward: Forward,
    which: Which,
    make: Callable[[Any, int], ThresholdedReLU],
) -> tuple[SwappedLayer, ...]:
    """Exchanges what `which` chooses, each for what the next layer bears; in place."""
    order: dict[str, Place] = {}

    def seen(place: Place, x: Any) -> Any:
        check_input(place, x, place.path in order)
        check_finite(place, x)
        order[place.path] = place
        return place.value(x)

    with_probes(model, places_of(model, which), lambda: forward(model, sample), seen, {})
    check_found(order)
    return tuple(_exchanged(model, sample, place, error, forward, make) for place in order.values())


def _exchanged(
    model: nnx.Module,
    sample: Any,
    place: Place,
    error: float,
    forward: Forward,
    make: Callable[[Any, int], ThresholdedReLU],
) -> SwappedLayer:
    """The layer that stands at the place from now on, with the largest threshold that is borne."""
    arrived: list[jax.Array] = []

    def keep(x: jax.Array) -> Any:
        arrived.append(x)
        return place.value(x)

    before = _linear_outputs(model, sample, place, forward, keep)
    x = arrived[0]
    closed = _linear_outputs(model, sample, place, forward, jnp.zeros_like)
    differs = (n for n, (a, b) in enumerate(zip(before, closed, strict=True)) if (a != b).any())
    number = next(differs, None)
    if number is None:
        raise ValueError(
            f"no nnx.Linear, LinearGeneral, Einsum or Conv depends on {place.path}, so that no "
            "error is there to be allowed: leave it out by `which`, or pass `sparsity`."
        )
    whole = before[number].astype(jnp.float32)
    norm = jnp.linalg.norm(whole)
    layer = make(place.value, x.shape[-1])

    def error_at(threshold: float) -> float:
        layer.threshold[...] = jnp.asarray(threshold, layer.threshold[...].dtype)
        try:
            _linear_outputs(model, sample, place, forward, layer, number)
        except _Reached as reached:
            off = jnp.linalg.norm(reached.output.astype(jnp.float32) - whole)
            return float(off / norm)
        raise AssertionError("a forward pass has fewer layers than the one before")

    low, high = 0.0, max(float(x.max()), 0.0)
    if not (lowest := error_at(0.0)) <= error:
        raise ValueError(
            f"at {place.path} the exchange of {name_of(place.value)} for a threshold of 0 itself "
            f"has an error of {lowest:.3g} in the next layer, more than {error:g}: allow more."
        )
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error_at(middle) <= error else (low, middle)
    reached = error_at(low)
    setattr(place.owner, place.name, nnx.data(layer))
    return SwappedLayer(
        place.path,
        name_of(place.value),
        jnp.asarray(layer.threshold_value),
        float(jnp.mean(layer(x) == 0)),
        x.size,
        reached,
    )


def _linear_outputs(
    model: nnx.Module,
    sample: Any,
    place: Place,
    forward: Forward,
    activation: Callable[[Any], Any],
    stop_at: int | None = None,
) -> list[jax.Array]:
    """What comes out of the linear layers behind the place, where `activation` stands there now.

    Raises:
      _Reached: at the output of number `stop_at` of them.
    """
    outputs: list[jax.Array] = []
    passed = False

    def apply(x: Any) -> Any:
        nonlocal passed
        passed = True
        return activation(x)

    def report(output: Any) -> None:
        if not passed:
            return
        if len(outputs) == stop_at:
            raise _Reached(output)
        outputs.append(output)

    linear = places_of(model, lambda path, value: isinstance(value, _LINEAR))
    try:
        setattr(place.owner, place.name, nnx.data(Probe(apply)))
        for other in linear:
            setattr(other.owner, other.name, nnx.data(_Watched(other.value, report)))
        forward(model, sample)
    finally:
        for other in (*linear, place):
            put(other, other.value)
    return outputs
