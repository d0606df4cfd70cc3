"""A program as a user writes it, for type checkers: `python tests/typed/run.py`. It runs, too.

A comment that ignores an error is itself an error where there is nothing to ignore: so what is
wrong here has to be noticed.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
from flax import nnx

import jaxtrelu
from jaxtrelu import Activity, Rectangle, Surrogate, bits, interop, sparse, theory
from jaxtrelu.nnx import JumpReLU, ThresholdedReLU


def activations(x: jax.Array, threshold: jax.Array) -> jax.Array:
    surrogate: Surrogate = Rectangle(0.5)
    y = jaxtrelu.thresholded_relu(x, threshold, variant="hard", fill=-1.0)
    assert_type(y, jax.Array)
    z = jaxtrelu.jump_relu(x, 0.5, surrogate=surrogate)
    assert_type(z, jax.Array)
    assert_type(jaxtrelu.thresholded_linear(x, x.T, b=None), jax.Array)
    return y + z + jaxtrelu.step(x, threshold) + jaxtrelu.antiderivative(x)


def products(x: jax.Array, w: jax.Array) -> jax.Array:
    result = jaxtrelu.sparse_mlp(x, w, w, 1.0, with_activity=True)
    y, activity = result if isinstance(result, tuple) else (result, None)
    if activity is not None:
        assert_type(activity, Activity)
        y = y * jnp.sum(activity.l0)
    words = bits.pack(x > 0)
    indices, values, counts = bits.compact(words, 3, x)
    assert_type(counts, jax.Array)
    assert values is not None
    gated = jaxtrelu.gated_mlp(x, w, w, w, products="dense")
    return y + gated + sparse.compact_mlp(x, w, w) + values.sum() + indices.sum()


def layers(x: jax.Array) -> jax.Array:
    model = nnx.Sequential(
        ThresholdedReLU(0.1, features=4, learned=True), JumpReLU(4, surrogate=Rectangle(0.1))
    )
    del model
    layer = ThresholdedReLU(0.1)
    return layer(x)


def networks(x: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
    network = interop.activation(0.5, surrogate=Rectangle(0.5), variant="hard")
    assert_type(network, interop.Network)
    assert_type(network.thresholds, tuple[str, ...])
    return network.replace({"threshold": 0.25})(x)


def wrong(x: jax.Array) -> None:
    jaxtrelu.thresholded_relu(x, variant="soft")  # type: ignore[arg-type]
    jaxtrelu.sparse_mlp(x, x, x, products="fast")  # type: ignore[arg-type]
    jaxtrelu.thresholded_relu(x, 0.5, ceil=1.0)  # type: ignore[call-arg]
    jaxtrelu.no_such_name  # type: ignore[attr-defined]  # noqa: B018


if __name__ == "__main__":
    ones = jnp.ones((4, 4))
    print(activations(ones, jnp.zeros(4)).shape, products(ones, ones).shape, layers(ones).shape)
    print(networks(ones), theory.gaussian_cutoff(ones, 0.9))
