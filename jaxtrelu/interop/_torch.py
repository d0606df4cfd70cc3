"""Networks from PyTorch modules, traced by torch.fx: what is supported is a table of layers."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtrelu._surrogates import Surrogate
from jaxtrelu.interop._network import Builder, Network, Rule, Value

if TYPE_CHECKING:
    import torch


def from_torch(module: "torch.nn.Module", *, surrogate: Surrogate | None = None) -> Network:
    """A network from a PyTorch module, whose weights and thresholds are parameters.

    ``torch.nn.Threshold(threshold, value)`` and ``F.threshold`` become thresholded activations of
    the variant ``hard`` with ``fill=value``, and the threshold the parameter
    ``"<name>.threshold"``, a float32 scalar. Weights keep PyTorch's names and shapes. Convention at
    the threshold: open where ``x > threshold``, strictly; NaN stays NaN: both as in PyTorch.
    Dropout and batch normalisation are those of ``module.eval()``.

    Args:
      module: with one input: any module that ``torch.fx.symbolic_trace`` can trace, of linear,
        convolutional, pooling and normalising layers and elementwise functions.
      surrogate: such as ``jaxtrelu.Rectangle(0.1)``, in the units of the activations' inputs: what
        gives thresholds a gradient, which is 0 without one.

    Returns:
      A `Network` with the module's inputs. Images stay (N, C, H, W).

    Raises:
      TypeError: `module` is no ``torch.nn.Module``; a file of weights alone does not say what is
        computed with them.
      NotImplementedError: a layer or a function that is not known here; says which, and where.
      ImportError: PyTorch is not installed.

    Example:
      >>> import torch  # doctest: +SKIP
      >>> from jaxtrelu import interop
      >>> layers = torch.nn.Linear(4, 8), torch.nn.Threshold(0.5, 0.0)  # doctest: +SKIP
      >>> interop.from_torch(torch.nn.Sequential(*layers)).thresholds  # doctest: +SKIP
      ('1.threshold',)

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Threshold.html.
    """
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"`module` should be a torch.nn.Module, but is a {type(module).__name__}. A state_dict "
            "has no layers: make the module, and load it there."
        )
    was_training = module.training
    try:
        traced = torch.fx.symbolic_trace(module.eval())
    except Exception as error:
        raise NotImplementedError(
            f"torch.fx cannot trace the module: {error}. Write it with torch.onnx.export, and read "
            "that with from_onnx."
        ) from error
    finally:
        module.train(was_training)
    builder = Builder(surrogate)
    rules, functions, methods = _layers(torch), _functions(torch), _methods()
    values: dict[Any, Any] = {}
    inputs: dict[str, Value] = {}
    outputs: dict[str, Value] = {}

    def known(argument):
        return torch.fx.node.map_arg(argument, lambda node: values[node])

    dtype = next((str(p.dtype).removeprefix("torch.") for p in module.parameters()), "float32")
    for node in traced.graph.nodes:
        name = node.name.lstrip("_")
        if node.op == "placeholder":
            values[node] = builder.named(name)
            inputs[values[node]] = Value(dtype)
        elif node.op == "get_attr":
            array = operator.attrgetter(node.target)(traced)
            values[node] = builder.parameter(node.target, _array(array))
        elif node.op == "call_module":
            layer, (x,) = traced.get_submodule(node.target), known(node.args)
            rule = _found(rules, type(layer), f"the layer {node.target!r}")
            values[node] = rule(builder, node.target, layer, x)
        elif node.op == "output":
            (result,) = known(node.args)
            results = result if isinstance(result, tuple | list) else (result,)
            outputs = {one: Value(dtype) for one in results}
        else:
            table = functions if node.op == "call_function" else methods
            rule = _found(table, node.target, f"the function {node.name!r}")
            values[node] = rule(builder, name, *known(node.args), **known(node.kwargs))
    return builder.network(inputs, outputs)


def _torch() -> Any:
    try:
        import torch
        import torch.fx
    except ImportError as error:
        raise ImportError(
            "from_torch needs PyTorch, which is not installed: https://pytorch.org.",
            name=error.name,
        ) from error
    return torch


def _found(table, key, where: str) -> Callable:
    if key not in table:
        name = getattr(key, "__name__", key)
        raise NotImplementedError(
            f"{where} is a {name}, which is not known here. Write the module with "
            "torch.onnx.export, and read that with from_onnx; or port that layer by hand."
        )
    return table[key]


def _array(tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # of which NumPy knows nothing
        import ml_dtypes

        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


# layers


def _linear(b: Builder, name: str, layer, x: str) -> str:
    inputs = [x, b.parameter(f"{name}.weight", _array(layer.weight))]
    product = b.add("MatMul", x, b.add("Transpose", inputs[1], perm=[1, 0]), name=name)
    if layer.bias is None:
        return product
    return b.add("Add", product, b.parameter(f"{name}.bias", _array(layer.bias)))


def _convolution(b: Builder, name: str, layer, x: str) -> str:
    if layer.padding_mode != "zeros":
        raise NotImplementedError(f"{name}: padding_mode={layer.padding_mode!r} is not known here.")
    attributes: dict[str, Any] = {
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    if isinstance(layer.padding, str):
        if layer.padding == "same":
            attributes["auto_pad"] = "SAME_UPPER"
    else:
        attributes["pads"] = [*layer.padding, *layer.padding]
    inputs = [x, b.parameter(f"{name}.weight", _array(layer.weight))]
    if layer.bias is not None:
        inputs.append(b.parameter(f"{name}.bias", _array(layer.bias)))
    return b.add("Conv", *inputs, name=name, **attributes)


def _threshold(b: Builder, name: str, layer, x: str) -> str:
    return _thresholded(b, name, x, layer.threshold, layer.value)


def _thresholded(b: Builder, name: str, x: str, threshold, value, inplace=False) -> str:
    threshold = np.float32(threshold)
    return b.activation(x, name, threshold, variant="hard", fill=value)


def _relu6(b: Builder, name: str, layer, x: str) -> str:
    return b.add("Clip", x, b.constant("low", np.float32(0)), b.constant("high", np.float32(6)))


def _flatten(b: Builder, name: str, layer, x: str) -> str:
    return _flattened(b, name, x, layer.start_dim, layer.end_dim)


def _flattened(b: Builder, name: str, x: str, start_dim=0, end_dim=-1) -> str:
    if (start_dim, end_dim) != (1, -1):
        raise NotImplementedError(f"{name}: flatten from axis {start_dim} to {end_dim}.")
    return b.add("Flatten", x, name=name)


def _batch_norm(b: Builder, name: str, layer, x: str) -> str:
    if layer.running_mean is None or layer.weight is None:
        raise NotImplementedError(f"{name}: batch normalisation without statistics or weights.")
    return b.add(
        "BatchNormalization",
        x,
        b.parameter(f"{name}.weight", _array(layer.weight)),
        b.parameter(f"{name}.bias", _array(layer.bias)),
        b.constant(f"{name}.running_mean", _array(layer.running_mean)),
        b.constant(f"{name}.running_var", _array(layer.running_var)),
        name=name,
        epsilon=layer.eps,
    )


def _layer_norm(b: Builder, name: str, layer, x: str) -> str:
    if layer.weight is None:
        raise NotImplementedError(f"{name}: layer normalisation without weights.")
    inputs = [x, b.parameter(f"{name}.weight", _array(layer.weight))]
    if layer.bias is not None:
        inputs.append(b.parameter(f"{name}.bias", _array(layer.bias)))
    axis = -len(layer.normalized_shape)
    return b.add("LayerNormalization", *inputs, name=name, axis=axis, epsilon=layer.eps)


def _pooled(kind: str) -> Rule:
    def rule(b: Builder, name: str, layer, x: str) -> str:
        spatial = 2

        def pair(value):
            return [value] * spatial if isinstance(value, int) else list(value)

        attributes: dict[str, Any] = {
            "kernel_shape": pair(layer.kernel_size),
            "strides": pair(layer.stride or layer.kernel_size),
            "pads": pair(layer.padding) * 2,
            "ceil_mode": int(layer.ceil_mode),
        }
        if kind == "AveragePool":
            if layer.divisor_override:
                raise NotImplementedError(f"{name}: divisor_override is not known here.")
            attributes["count_include_pad"] = int(layer.count_include_pad)
        else:
            attributes["dilations"] = pair(layer.dilation)
        return b.add(kind, x, name=name, **attributes)

    return rule


def _globally_pooled(b: Builder, name: str, layer, x: str) -> str:
    size = layer.output_size
    if size not in (1, (1, 1)):
        raise NotImplementedError(f"{name}: adaptive pooling to {size}; only to 1 is known here.")
    return b.add("GlobalAveragePool", x, name=name)


def _softmax(b: Builder, name: str, layer, x: str) -> str:
    return b.add("Softmax", x, name=name, axis=-1 if layer.dim is None else layer.dim)


def _simple(kind: str) -> Rule:
    return lambda b, name, layer, x: b.add(kind, x, name=name)


def _layers(torch) -> dict[type, Rule]:
    nn = torch.nn
    return {
        nn.Threshold: _threshold,
        nn.Linear: _linear,
        nn.Conv1d: _convolution,
        nn.Conv2d: _convolution,
        nn.BatchNorm1d: _batch_norm,
        nn.BatchNorm2d: _batch_norm,
        nn.LayerNorm: _layer_norm,
        nn.MaxPool2d: _pooled("MaxPool"),
        nn.AvgPool2d: _pooled("AveragePool"),
        nn.AdaptiveAvgPool2d: _globally_pooled,
        nn.Flatten: _flatten,
        nn.Softmax: _softmax,
        nn.GELU: lambda b, name, layer, x: b.add(
            "Gelu", x, name=name, approximate=layer.approximate
        ),
        nn.LeakyReLU: lambda b, name, layer, x: b.add(
            "LeakyRelu", x, name=name, alpha=layer.negative_slope
        ),
        nn.ELU: lambda b, name, layer, x: b.add("Elu", x, name=name, alpha=layer.alpha),
        nn.ReLU: _simple("Relu"),
        nn.ReLU6: _relu6,
        nn.Sigmoid: _simple("Sigmoid"),
        nn.Tanh: _simple("Tanh"),
        nn.Identity: lambda b, name, layer, x: x,
        nn.Dropout: lambda b, name, layer, x: x,
        nn.Dropout2d: lambda b, name, layer, x: x,
    }


# functions and methods


def _binary(kind: str) -> Callable:
    def rule(b: Builder, name: str, left, right, alpha=1) -> str:
        if alpha != 1:
            raise NotImplementedError(f"{name}: alpha={alpha} is not known here.")
        operands = [
            one if isinstance(one, str) else b.constant(f"{name}.number", np.float32(one))
            for one in (left, right)
        ]
        return b.add(kind, *operands, name=name)

    return rule


def _unary(kind: str) -> Callable:
    return lambda b, name, x, inplace=False: b.add(kind, x, name=name)


def _functions(torch) -> dict[Any, Callable]:
    functional = torch.nn.functional
    return {
        functional.threshold: _thresholded,
        torch.threshold: _thresholded,
        functional.relu: _unary("Relu"),
        torch.relu: _unary("Relu"),
        torch.sigmoid: _unary("Sigmoid"),
        torch.tanh: _unary("Tanh"),
        torch.flatten: _flattened,
        functional.dropout: lambda b, name, x, *rest, **options: x,
        operator.add: _binary("Add"),
        torch.add: _binary("Add"),
        operator.sub: _binary("Sub"),
        operator.mul: _binary("Mul"),
        torch.mul: _binary("Mul"),
        operator.truediv: _binary("Div"),
    }


def _methods() -> dict[str, Callable]:
    return {
        "flatten": _flattened,
        "relu": _unary("Relu"),
        "sigmoid": _unary("Sigmoid"),
        "tanh": _unary("Tanh"),
    }
