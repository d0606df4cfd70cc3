"""Networks from Keras 3 models: what is supported is a table of layers and of operations."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtrelu._surrogates import Surrogate
from jaxtrelu.interop._network import Builder, Network, Rule, Value

if TYPE_CHECKING:
    import keras


def from_keras(
    model: "keras.Model | str | os.PathLike", *, surrogate: Surrogate | None = None
) -> Network:
    """A network from a Keras model, whose weights and thresholds are parameters.

    ``keras.layers.ReLU(threshold=...)`` and the ``ThresholdedReLU(theta)`` of Keras 2 become
    thresholded activations of the variant ``hard``, ``ReLU(max_value=...)`` one of ``shift`` with a
    threshold of 0; the threshold is the parameter ``"<name of the layer>.threshold"``, a float32
    scalar. So do ``keras.ops.threshold`` and ``keras.activations.relu`` on the tensors of a
    functional model. Convention at the threshold: open where ``x > threshold``, strictly, as in
    Keras; NaN stays NaN. Dropout and batch normalisation are those of ``model(x, training=False)``.

    Args:
      model: a Sequential or functional model of Keras 3, on whatever back end; or the path of a
        ``.keras`` or ``.h5`` file, that of Keras 2 with ThresholdedReLU included.
      surrogate: such as ``jaxtrelu.Rectangle(0.1)``, in the units of the activations' inputs: what
        gives thresholds of ``hard`` a gradient, which is 0 without one.

    Returns:
      A `Network` with the model's inputs and outputs. Images stay (N, H, W, C).

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: it is no Keras model, or not of these kinds.
      NotImplementedError: a layer or an operation, or an option of one, that is not known here;
        says which.
      ImportError: Keras is not installed.

    Example:
      >>> import keras  # doctest: +SKIP
      >>> from jaxtrelu import interop
      >>> act = keras.layers.ReLU(threshold=0.5, name="act")  # doctest: +SKIP
      >>> model = keras.Sequential([keras.Input((4,)), act])  # doctest: +SKIP
      >>> interop.from_keras(model).thresholds  # doctest: +SKIP
      ('act.threshold',)

    Source: https://keras.io/api/layers/activation_layers/relu/.
    """
    keras = _keras()
    if isinstance(model, str | os.PathLike):
        model = _loaded(keras, Path(model).expanduser())
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` should be a keras.Model or a path, but is a {type(model).__name__}."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise TypeError("the model is not built: its first layer should be a keras.Input(shape).")
    if not isinstance(model, keras.Sequential) and getattr(model, "inputs", None) is None:
        raise TypeError(
            f"`model` should be a Sequential or functional model, but is a {type(model).__name__}, "
            "of which only its code knows what follows on what. Write it with "
            'model.export(path, format="onnx"), and read that with from_onnx.'
        )
    builder = Builder(surrogate)
    rules, of_operations = _layers(), _operations()
    names: dict[int, str] = {}
    inputs: dict[str, Value] = {}
    for tensor in model.inputs:
        name = builder.named(tensor.name)
        names[id(tensor)], inputs[name] = name, Value(tensor.dtype, tuple(tensor.shape))

    def added(layer, x):
        is_layer = isinstance(layer, keras.layers.Layer)  # of both there is an Add, and so on
        rule = (rules if is_layer else of_operations).get(type(layer).__name__)
        if rule is None:
            what = "layer" if is_layer else "operation"
            raise NotImplementedError(
                f"the {what} {layer.name!r} is a {type(layer).__name__}, which is not known here. "
                'Write the model with model.export(path, format="onnx"), and read that with '
                f"from_onnx; or port that {what} by hand."
            )
        return rule(builder, layer.name, layer, x)

    if isinstance(model, keras.Sequential):
        (y,) = inputs
        for layer in model.layers:
            y = added(layer, y)
        results = [y]
    else:
        for layer in _ordered(model):
            if isinstance(layer, keras.layers.InputLayer):
                continue
            taken = layer.input
            several = isinstance(taken, list | tuple)
            x = [names[id(t)] for t in taken] if several else names[id(taken)]
            names[id(layer.output)] = added(layer, x)
        if missing := [t.name for t in model.outputs if id(t) not in names]:
            raise NotImplementedError(
                f"the output {missing[0]!r} comes from a layer that is used more than once, which "
                "is not known here."
            )
        results = [names[id(t)] for t in model.outputs]
    outputs = {
        name: Value(t.dtype, tuple(t.shape)) for name, t in zip(results, model.outputs, strict=True)
    }
    return builder.network(inputs, outputs)


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        raise ImportError(
            "from_keras needs Keras 3, which is not installed: pip install keras, and set "
            "KERAS_BACKEND=jax.",
            name=error.name,
        ) from error
    return keras


def _loaded(keras, path: Path):
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")

    class ThresholdedReLU(keras.layers.Layer):
        """That of Keras 2, which Keras 3 has no more."""

        def __init__(self, theta=1.0, **options):
            super().__init__(**options)
            self.theta = float(theta)

        def call(self, x):
            return keras.ops.where(x > self.theta, x, 0)

    known = {"ThresholdedReLU": ThresholdedReLU}
    return keras.models.load_model(path, custom_objects=known, compile=False)


def _ordered(model) -> list:
    """Layers and operations in an order in which each comes after those that it takes from."""
    left, made = list(model.operations), {id(tensor) for tensor in model.inputs}
    ordered: list = []
    while left:
        for layer in left:
            taken = layer.input
            taken = taken if isinstance(taken, list | tuple) else [taken]
            if all(id(tensor) in made for tensor in taken):
                break
        else:
            names = ", ".join(layer.name for layer in left)
            raise NotImplementedError(
                f"these layers follow on one that is used more than once, which is not known here: "
                f"{names}."
            )
        left.remove(layer)
        ordered.append(layer)
        given = layer.output
        made |= {id(t) for t in (given if isinstance(given, list | tuple) else [given])}
    return ordered


# layers


def _array(variable) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))


def _activated(b: Builder, name: str, layer, x: str) -> str:
    """The activation that is an option of a layer."""
    function = getattr(layer.activation, "__name__", str(layer.activation))
    if function == "linear":
        return x
    if function not in _ACTIVATIONS:
        raise NotImplementedError(
            f"the layer {name!r} has the activation {function!r}, which is not known here."
        )
    operator, attributes = _ACTIVATIONS[function]
    return b.add(operator, x, name=f"{name}.{function}", **attributes)


_ACTIVATIONS: dict[str, tuple[str, dict]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "gelu": ("Gelu", {}),
    "elu": ("Elu", {}),
}


def _dense(b: Builder, name: str, layer, x: str) -> str:
    y = b.add("MatMul", x, b.parameter(f"{name}.kernel", _array(layer.kernel)), name=name)
    if layer.use_bias:
        y = b.add("Add", y, b.parameter(f"{name}.bias", _array(layer.bias)))
    return _activated(b, name, layer, y)


def _channels_first(b: Builder, name: str, layer, x: str, compute: Callable[[str], str]) -> str:
    """Images as ONNX has them, where Keras's are (N, H, W, C)."""
    if layer.data_format != "channels_last":
        return compute(x)
    y = compute(b.add("Transpose", x, perm=[0, 3, 1, 2]))
    return b.add("Transpose", y, perm=[0, 2, 3, 1])


def _convolution(b: Builder, name: str, layer, x: str) -> str:
    attributes: dict[str, Any] = {
        "strides": list(layer.strides),
        "dilations": list(layer.dilation_rate),
        "group": layer.groups,
        "auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID",
    }
    kernel = b.parameter(f"{name}.kernel", _array(layer.kernel))  # (h, w, in, out)
    weights = b.add("Transpose", kernel, perm=[3, 2, 0, 1])
    biases = [b.parameter(f"{name}.bias", _array(layer.bias))] if layer.use_bias else []

    def compute(x: str) -> str:
        return b.add("Conv", x, weights, *biases, name=name, **attributes)

    return _activated(b, name, layer, _channels_first(b, name, layer, x, compute))


def _pooled(operator: str) -> Rule:
    def rule(b: Builder, name: str, layer, x: str) -> str:
        attributes = {
            "kernel_shape": list(layer.pool_size),
            "strides": list(layer.strides),
            "auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID",
        }

        def compute(x: str) -> str:
            return b.add(operator, x, name=name, **attributes)

        return _channels_first(b, name, layer, x, compute)

    return rule


def _globally_pooled(b: Builder, name: str, layer, x: str) -> str:
    if layer.keepdims:
        raise NotImplementedError(f"the layer {name!r} has keepdims=True.")
    axes = [1, 2] if layer.data_format == "channels_last" else [2, 3]
    over = b.constant(f"{name}.axes", np.array(axes, np.int64))
    return b.add("ReduceMean", x, over, name=name, keepdims=0)


def _batch_normalization(b: Builder, name: str, layer, x: str) -> str:
    """As arithmetic, since the axis of the channels may be any."""
    rank = len(layer.input.shape)
    shape = [1] * rank
    shape[layer.axis] = layer.input.shape[layer.axis]

    def placed(variable):
        return _array(variable).reshape(shape[1:])

    scale = 1 / np.sqrt(placed(layer.moving_variance) + np.float32(layer.epsilon))
    y = b.add("Sub", x, b.constant(f"{name}.mean", placed(layer.moving_mean)))
    y = b.add("Mul", y, b.constant(f"{name}.inverse", scale))
    if layer.scale:
        y = b.add("Mul", y, b.parameter(f"{name}.gamma", placed(layer.gamma)))
    if layer.center:
        y = b.add("Add", y, b.parameter(f"{name}.beta", placed(layer.beta)))
    return y


def _relu(b: Builder, name: str, layer, x: str) -> str:
    threshold, slope, most = layer.threshold, layer.negative_slope, layer.max_value
    if slope:
        if threshold or most is not None:
            raise NotImplementedError(
                f"{name!r} has a negative_slope beside a threshold or a max_value."
            )
        return b.add("LeakyRelu", x, name=name, alpha=float(slope))
    if most is None:
        return b.activation(x, name, np.float32(threshold), variant="hard")
    if threshold:
        raise NotImplementedError(
            f"{name!r} has a max_value beside a threshold, which is no variant of "
            "jaxtrelu.thresholded_relu: a ceiling there belongs to max(0, x - threshold)."
        )
    return b.activation(x, name, np.float32(0), ceiling=float(most))


def _thresholded_relu(b: Builder, name: str, layer, x: str) -> str:
    return b.activation(x, name, np.float32(layer.theta), variant="hard")


def _threshold(b: Builder, name: str, operation, x: str) -> str:
    fill = float(operation.default_value)
    return b.activation(x, name, np.float32(operation.threshold), variant="hard", fill=fill)


def _joined(operator: str) -> Callable:
    def rule(b: Builder, name: str, layer, inputs: list) -> str:
        first, *rest = inputs
        for other in rest:
            first = b.add(operator, first, other, name=name)
        return first

    return rule


def _same(b: Builder, name: str, layer, x: str) -> str:
    return x


def _operations() -> dict[str, Callable]:
    """What functions do to the tensors of a functional model, which are no layers."""
    return {"ReLU": _relu, "Threshold": _threshold}


def _layers() -> dict[str, Callable]:
    return {
        "Activation": _activated,
        "Add": _joined("Add"),
        "AveragePooling2D": _pooled("AveragePool"),
        "BatchNormalization": _batch_normalization,
        "Concatenate": lambda b, name, layer, xs: b.add("Concat", *xs, name=name, axis=layer.axis),
        "Conv2D": _convolution,
        "Dense": _dense,
        "Dropout": _same,
        "Flatten": lambda b, name, layer, x: b.add("Flatten", x, name=name),
        "GlobalAveragePooling2D": _globally_pooled,
        "Identity": _same,
        "InputLayer": _same,
        "LeakyReLU": lambda b, name, layer, x: b.add(
            "LeakyRelu", x, name=name, alpha=float(layer.negative_slope)
        ),
        "MaxPooling2D": _pooled("MaxPool"),
        "Multiply": _joined("Mul"),
        "ReLU": _relu,
        "Softmax": lambda b, name, layer, x: b.add("Softmax", x, name=name, axis=layer.axis),
        "ThresholdedReLU": _thresholded_relu,
    }
