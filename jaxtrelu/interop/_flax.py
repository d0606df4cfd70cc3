"""Networks from Flax NNX layers, so that they can be written as ONNX."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrelu._layers import flax_is_missing
from jaxtrelu.interop._network import Builder, Network, Value

if TYPE_CHECKING:
    from flax import nnx


def from_flax(model: "nnx.Module") -> Network:
    """A network from NNX layers in a row, for `to_onnx`.

    Known are ``nnx.Sequential``, ``nnx.Linear``, ``nnx.Dropout`` (which passes everything), the
    layers of `jaxtrelu.nnx`, and ``jax.nn``'s relu, sigmoid, tanh, gelu, softplus and softmax.
    Convention at the threshold: open where ``x > threshold``, strictly.

    Args:
      model: one of these layers, or an ``nnx.Sequential`` of them.

    Returns:
      A `Network` with the parameters as they are now, the input ``"x"`` and one output. Channels
      stay the last axis.

    Raises:
      NotImplementedError: a layer that is not known here; says which, and where.
      ImportError: Flax is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxtrelu import interop
      >>> from jaxtrelu.nnx import ThresholdedReLU
      >>> dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> model = nnx.Sequential(dense, ThresholdedReLU([0.0, 0.5, 1.0]))
      >>> network = interop.from_flax(model)
      >>> bool(jnp.allclose(network(jnp.ones((1, 2))), model(jnp.ones((1, 2)))))
      True

    Source: the layers' own definitions.
    """
    try:
        from flax import nnx
    except ImportError as error:
        raise flax_is_missing(error, "jaxtrelu.interop.from_flax") from error
    builder = Builder(None)
    x = builder.named("x")
    y = _added(builder, "", model, x)
    arrays = jax.tree.leaves(nnx.state(model, nnx.Param))
    dtypes = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    value = Value(jnp.result_type(*dtypes).name if dtypes else "float32")
    if y == x:
        y = builder.add("Identity", x, name="y")
    return builder.network({x: value}, {y: value})


def _added(b: Builder, path: str, layer, x: str) -> str:
    from flax import nnx

    from jaxtrelu import nnx as ours

    if isinstance(layer, nnx.Sequential):
        for number, inner in enumerate(layer.layers):
            x = _added(b, f"{path}.{number}" if path else str(number), inner, x)
        return x
    rules: dict[Any, Callable] = {
        nnx.Linear: _linear,
        nnx.Dropout: lambda b, name, layer, x: x,
        ours.ThresholdedReLU: _thresholded_relu,
        ours.JumpReLU: _jump_relu,
        ours.CompactMLP: _compact_mlp,
    }
    name = path or "layer"
    if type(layer) in rules:
        return rules[type(layer)](b, name, layer, x)
    for function, (operator, attributes) in _FUNCTIONS.items():
        if layer is function:
            return b.add(operator, x, name=name, **attributes)
    what = getattr(layer, "__name__", type(layer).__name__)
    where = f"the layer {path!r}" if path else "`model`"
    functions = ", ".join(dict.fromkeys(function.__name__ for function in _FUNCTIONS))
    raise NotImplementedError(
        f"{where} is {'the class ' * isinstance(layer, type)}{what}, which is not known here. "
        f"Known are {', '.join(kind.__name__ for kind in (nnx.Sequential, *rules))}, and jax.nn's "
        f"{functions}. Of a module of your own pass the layers in the order of their calls, "
        "nnx.Sequential(model.first, model.activation, model.second), and put what is around them "
        "together with onnx.compose."
    )


_FUNCTIONS: dict[Callable, tuple[str, dict[str, Any]]] = {
    jax.nn.relu: ("Relu", {}),
    jax.nn.sigmoid: ("Sigmoid", {}),
    jax.nn.tanh: ("Tanh", {}),
    jnp.tanh: ("Tanh", {}),
    jax.nn.softplus: ("Softplus", {}),
    jax.nn.softmax: ("Softmax", {"axis": -1}),
    jax.nn.gelu: ("Gelu", {"approximate": "tanh"}),
}


def _linear(b: Builder, name: str, layer, x: str) -> str:
    y = b.add("MatMul", x, b.parameter(f"{name}.kernel", layer.kernel[...]), name=name)
    if layer.bias is None:
        return y
    return b.add("Add", y, b.parameter(f"{name}.bias", layer.bias[...]))


def _thresholded_relu(b: Builder, name: str, layer, x: str) -> str:
    options = {"variant": layer.variant, "ceiling": layer.ceiling, "fill": layer.fill}
    return b.activation(x, name, _placed(name, layer.threshold_value, layer.axis), **options)


def _jump_relu(b: Builder, name: str, layer, x: str) -> str:
    threshold = _placed(name, layer.threshold_value, (layer.axis,))
    return b.activation(x, name, threshold, variant="hard")


def _compact_mlp(b: Builder, name: str, layer, x: str) -> str:
    def product(x, weights, bias):
        y = b.add("MatMul", x, b.parameter(f"{name}.{weights[0]}", weights[1]))
        return b.add("Add", y, b.parameter(f"{name}.{bias[0]}", bias[1]))

    z = product(x, ("w_in", layer.w_in[...].T), ("b_in", layer.b_in[...]))
    options = {"variant": layer.variant, "ceiling": layer.ceiling}
    a = b.activation(z, name, layer.threshold_value, **options)
    return product(a, ("w_out", layer.w_out[...]), ("b_out", layer.b_out[...]))


def _placed(name: str, threshold, axes: tuple[int, ...]) -> np.ndarray:
    """The threshold with axes of 1 where the layer has none, so that it broadcasts against x."""
    array = np.asarray(threshold)
    if array.ndim == 0:
        return array
    if any(axis >= 0 for axis in axes):
        raise NotImplementedError(
            f"the layer {name!r} counts its channels' axis from the front (axis={axes}), and the "
            "number of x's axes is not known here. Count it from the end."
        )
    shape = [1] * -min(axes)
    for axis, size in zip(axes, array.shape, strict=True):
        shape[axis] = size
    order = np.argsort(axes)
    return array.transpose(order).reshape(shape)
