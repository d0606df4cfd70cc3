"""What ONNX's operators compute, in JAX: a table, one row an operator.

A row takes ``(attributes, opset, *inputs)``; an input that is left out is None. Shapes and axes
have to be known while a program is traced, so arithmetic on what is known stays in NumPy.

Source: the operators' specification, https://onnx.ai/onnx/operators/.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class OperatorError(Exception):
    """An operator is asked for something that is not computed here; says what."""


#: Indices of the field `TensorProto.data_type`, of the types that are computed with.
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip


def static_array(value) -> np.ndarray:
    """A constant as a NumPy array; integers are kept in 64 bits."""
    return np.asarray(value)


def _known(value, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray | np.generic):
        raise OperatorError(f"{what} is computed from the input; it has to be a constant.")
    return np.asarray(value)


def _integers(value, what: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _known(value, what).reshape(-1))


def _module(*values):
    """NumPy for constants, so that shapes stay known; else JAX."""
    return np if all(isinstance(v, np.ndarray | np.generic) for v in values) else jnp


def _elementwise(name: str) -> Callable:
    def compute(attributes, opset, *inputs):
        return getattr(_module(*inputs), name)(*inputs)

    return compute


def _of(function: Callable) -> Callable:
    def compute(attributes, opset, *inputs):
        return function(*inputs)

    return compute


def _divided(attributes, opset, a, b):
    xp = _module(a, b)
    whole = all(jnp.issubdtype(v.dtype, jnp.integer) for v in (a, b))
    return xp.floor_divide(a, b) if whole else xp.divide(a, b)


def _extreme(name: str) -> Callable:
    def compute(attributes, opset, first, *rest):
        for other in rest:
            first = getattr(jnp, name)(first, other)
        return first

    return compute


def _gemm(attributes, opset, a, b, c=None):
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    y = jnp.matmul(a, b)
    y = y if (alpha := attributes.get("alpha", 1.0)) == 1 else y * jnp.asarray(alpha, y.dtype)
    if c is None:
        return y
    return y + (c if (beta := attributes.get("beta", 1.0)) == 1 else c * jnp.asarray(beta, c.dtype))


def _clip(attributes, opset, x, low=None, high=None):
    low = attributes.get("min") if low is None else low
    high = attributes.get("max") if high is None else high
    x = x if low is None else jnp.maximum(x, jnp.asarray(low, x.dtype))
    return x if high is None else jnp.minimum(x, jnp.asarray(high, x.dtype))


def _softmax(function: Callable) -> Callable:
    def compute(attributes, opset, x):
        if opset >= 13:
            return function(x, axis=attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % max(x.ndim, 1)  # all axes from there on are one
        flat = x.reshape(*x.shape[:axis], math.prod(x.shape[axis:]))
        return function(flat, axis=-1).reshape(x.shape)

    return compute


def _gelu(attributes, opset, x):
    return jax.nn.gelu(x, approximate=attributes.get("approximate", "none") == "tanh")


def _elu(attributes, opset, x):
    return jax.nn.elu(x, jnp.asarray(attributes.get("alpha", 1.0), x.dtype))


def _leaky_relu(attributes, opset, x):
    return jnp.where(x >= 0, x, x * jnp.asarray(attributes.get("alpha", 0.01), x.dtype))


# windows


def _padding(attributes, spatial: int, window, strides, dilations, shape):
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        pads = attributes.get("pads") or [0] * (2 * spatial)
        return list(zip(pads[:spatial], pads[spatial:], strict=True))
    if automatic == "VALID":
        return [(0, 0)] * spatial
    pairs = []
    for size, one, stride, dilation in zip(shape, window, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (one - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return pairs


def _convolution(attributes, opset, x, weights, bias=None):
    spatial = x.ndim - 2
    strides = attributes.get("strides") or [1] * spatial
    dilations = attributes.get("dilations") or [1] * spatial
    padding = _padding(attributes, spatial, weights.shape[2:], strides, dilations, x.shape[2:])
    y = lax.conv_general_dilated(
        x,
        weights,
        strides,
        padding,
        rhs_dilation=dilations,
        feature_group_count=attributes.get("group", 1),
    )
    return y if bias is None else y + bias.reshape(-1, *[1] * spatial)


def _windows(attributes, x):
    spatial = x.ndim - 2
    window = attributes["kernel_shape"]
    strides = attributes.get("strides") or [1] * spatial
    dilations = attributes.get("dilations") or [1] * spatial
    if attributes.get("ceil_mode"):
        raise OperatorError("ceil_mode=1 is not computed here.")
    padding = _padding(attributes, spatial, window, strides, dilations, x.shape[2:])
    return (
        (1, 1, *window),
        (1, 1, *strides),
        ((0, 0), (0, 0), *padding),
        (1, 1, *dilations),
    )


def _max_pool(attributes, opset, x):
    window, strides, padding, dilations = _windows(attributes, x)
    least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    start = np.array(least, x.dtype)
    return lax.reduce_window(x, start, lax.max, window, strides, padding, window_dilation=dilations)


def _average_pool(attributes, opset, x):
    window, strides, padding, dilations = _windows(attributes, x)

    def total(array):
        zero = np.array(0, array.dtype)
        return lax.reduce_window(
            array, zero, lax.add, window, strides, padding, window_dilation=dilations
        )

    if attributes.get("count_include_pad"):
        return total(x) / jnp.asarray(math.prod(window), x.dtype)
    return total(x) / total(jnp.ones_like(x))


def _global_average_pool(attributes, opset, x):
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


# normalisation


def _batch_normalization(attributes, opset, x, scale, bias, mean, variance):
    if attributes.get("training_mode"):
        raise OperatorError("training_mode=1 is not computed here: means and variances are fixed.")
    over = (-1, *[1] * (x.ndim - 2))
    scale, bias, mean, variance = (v.reshape(over) for v in (scale, bias, mean, variance))
    epsilon = jnp.asarray(attributes.get("epsilon", 1e-5), x.dtype)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


def _layer_normalization(attributes, opset, x, scale, bias=None):
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(centred * centred, axes, keepdims=True)
    epsilon = jnp.asarray(attributes.get("epsilon", 1e-5), x.dtype)
    y = centred / jnp.sqrt(variance + epsilon) * scale
    return y if bias is None else y + bias


# shapes


def _reshape(attributes, opset, x, shape=None):
    wanted = _integers(attributes["shape"] if shape is None else shape, "the shape")
    if not attributes.get("allowzero"):
        wanted = tuple(x.shape[i] if n == 0 else n for i, n in enumerate(wanted))
    return x.reshape(wanted)


def _flatten(attributes, opset, x):
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(attributes, opset, x):
    return _module(x).transpose(x, attributes.get("perm"))


def _axes(attributes, axes) -> tuple[int, ...] | None:
    if axes is None:
        found = attributes.get("axes")
        return None if found is None else tuple(found)
    return _integers(axes, "the axes")


def _squeeze(attributes, opset, x, axes=None):
    return _module(x).squeeze(x, _axes(attributes, axes))


def _unsqueeze(attributes, opset, x, axes=None):
    return _module(x).expand_dims(x, _axes(attributes, axes))


def _concat(attributes, opset, *arrays):
    return _module(*arrays).concatenate(arrays, axis=attributes["axis"])


def _gather(attributes, opset, x, index):
    return _module(x, index).take(x, index, axis=attributes.get("axis", 0))


def _sliced(attributes, opset, x, starts, ends, axes=None, steps=None):
    starts, ends = _integers(starts, "the start"), _integers(ends, "the end")
    axes = range(len(starts)) if axes is None else _integers(axes, "the axis")
    steps = [1] * len(starts) if steps is None else _integers(steps, "the step")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        past = step < 0 and end < -x.shape[axis]
        index[axis] = slice(start, None if past else end, step)
    return x[tuple(index)]


def _shape(attributes, opset, x):
    found = np.array(x.shape, np.int64)
    return found[attributes.get("start", 0) : attributes.get("end")]


def _expand(attributes, opset, x, shape):
    wanted = _integers(shape, "the shape")
    return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, wanted))


def _cast(attributes, opset, x):
    if attributes["to"] not in TYPES:
        raise OperatorError(f"no type of JAX for ONNX's {attributes['to']}.")
    return x.astype(TYPES[attributes["to"]])


def _constant_of_shape(attributes, opset, shape):
    value = np.asarray(attributes.get("value", np.zeros(1, np.float32))).reshape(())
    return np.full(_integers(shape, "the shape"), value)


def _reduced(name: str) -> Callable:
    def compute(attributes, opset, x, axes=None):
        over = _axes(attributes, axes)
        if not over and attributes.get("noop_with_empty_axes"):
            return x
        keep = bool(attributes.get("keepdims", 1))
        return getattr(jnp, name)(x, axis=over or None, keepdims=keep)

    return compute


def _identity(attributes, opset, x, *rest):
    return x


def _dropout(attributes, opset, x, ratio=None, training=None):
    if training is not None and bool(_known(training, "training_mode")):
        raise OperatorError("training_mode is true; dropout is not computed here.")
    return x


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": _elementwise("abs"),
    "Add": _elementwise("add"),
    "And": _elementwise("logical_and"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _convolution,
    "Div": _divided,
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": _elementwise("equal"),
    "Erf": _of(jax.scipy.special.erf),
    "Exp": _elementwise("exp"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Greater": _elementwise("greater"),
    "GreaterOrEqual": _elementwise("greater_equal"),
    "Identity": _identity,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "Less": _elementwise("less"),
    "LessOrEqual": _elementwise("less_equal"),
    "Log": _elementwise("log"),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": _elementwise("matmul"),
    "Max": _extreme("maximum"),
    "MaxPool": _max_pool,
    "Min": _extreme("minimum"),
    "Mul": _elementwise("multiply"),
    "Neg": _elementwise("negative"),
    "Not": _elementwise("logical_not"),
    "Or": _elementwise("logical_or"),
    "Pow": _elementwise("power"),
    "ReduceMean": _reduced("mean"),
    "ReduceMax": _reduced("max"),
    "ReduceSum": _reduced("sum"),
    "Relu": _of(jax.nn.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _of(jax.nn.sigmoid),
    "Sign": _elementwise("sign"),
    "Slice": _sliced,
    "Softmax": _softmax(jax.nn.softmax),
    "Softplus": _of(jax.nn.softplus),
    "Sqrt": _elementwise("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _elementwise("subtract"),
    "Sum": _extreme("add"),
    "Tanh": _elementwise("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise("where"),
}
