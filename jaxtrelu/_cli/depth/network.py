"""The nets that `depth` trains, many side by side: dense layers, each followed by the activation.

Its own, rather than Flax modules: the hidden layers are one array, so that a loop goes over them,
and activation and variances are operands, so that several configurations are one program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrelu import thresholded_relu
from jaxtrelu._cli.depth.settings import Start


class Dense(NamedTuple):
    """Weights (inputs, outputs) and biases (outputs,), with more axes in front for more layers."""

    kernel: jax.Array
    bias: jax.Array


class Params(NamedTuple):
    """The parameters of one net."""

    first: Dense
    hidden: Dense  # (depth - 1, width, width) and (depth - 1, width)
    head: Dense


def activate(z: jax.Array, start: Start) -> jax.Array:
    """The net's activation of pre-activations z."""
    if start.ceiling is None:
        return thresholded_relu(z, start.threshold)
    # A ceiling is a Python number, the same for all nets: so it is 1, and z is scaled.
    scaled = thresholded_relu(z / start.ceiling, start.threshold / start.ceiling, ceiling=1.0)
    return start.ceiling * scaled


def draw(key: jax.Array, shape: tuple[int, ...], start: Start) -> Dense:
    """A layer, or several along the first axes of `shape`, of a net's variances."""
    kernel_key, bias_key = jax.random.split(key)
    kernel = jax.random.normal(kernel_key, shape) * jnp.sqrt(start.weight_variance / shape[-2])
    bias = jax.random.normal(bias_key, (*shape[:-2], shape[-1])) * jnp.sqrt(start.bias_variance)
    return Dense(kernel, bias)


def initial(key: jax.Array, inputs: int, width: int, depth: int, classes: int, start: Start) -> Any:
    """The parameters of a net at its start; the head has biases of 0."""
    first, hidden, head = jax.random.split(key, 3)
    last = draw(head, (width, classes), start)
    return Params(
        draw(first, (inputs, width), start),
        draw(hidden, (depth - 1, width, width), start),
        last._replace(bias=jnp.zeros_like(last.bias)),
    )


def input_scale(start: Start) -> jax.Array:
    """The root mean square of an input's features at which the first layer has variance 1."""
    return jnp.sqrt((1 - start.bias_variance) / start.weight_variance)


def scores(params: Params, x: jax.Array, start: Start) -> jax.Array:
    """Class scores (rows, classes) of rows (rows, inputs) whose root mean square is 1."""
    return _through(params, x, start)[0]


def scores_and_zeros(params: Params, x: jax.Array, start: Start) -> tuple[jax.Array, jax.Array]:
    """Class scores, and the share of zeros in each hidden layer of each row (depth, rows)."""
    return _through(params, x, start, lambda y: jnp.mean(y == 0, -1))


def _through(params: Params, x: jax.Array, start: Start, look: Any = None) -> tuple[Any, Any]:
    x = x * input_scale(start)
    y = activate(x @ params.first.kernel + params.first.bias, start)

    def layer(y, dense):
        after = activate(y @ dense.kernel + dense.bias, start)
        return after, None if look is None else look(after)

    last, seen = jax.lax.scan(layer, y, params.hidden)
    if look is not None:
        seen = jnp.concatenate([look(y)[None], seen])
    return last @ params.head.kernel + params.head.bias, seen
