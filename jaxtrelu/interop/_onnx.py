"""Networks from ONNX files, and back.

What ONNX has an operator for, it is written as: `hard` with one number is ThresholdedRelu. All
other activations are a few standard nodes, and the file's metadata say which ones, so that they are
read back as what they are.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxtrelu import _files
from jaxtrelu._primitive.spec import computation_dtype
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.interop._network import (
    ACTIVATION,
    Graph,
    Network,
    Node,
    Value,
    unknown_operators,
)
from jaxtrelu.interop._operators import TYPES

if TYPE_CHECKING:
    import onnx

#: The key of the file's metadata under which activations are described.
_KEY = "jaxtrelu:activations"
# Comparisons with equality exist from this version of the operators on.
_LEAST_OPSET = 12
_NUMBERS = {name: number for number, name in TYPES.items()}
# Inputs of an operator that are no parameters, though they are stored as weights are.
_STATISTICS = {"BatchNormalization": (3, 4)}


def _onnx() -> Any:
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise ImportError(
            "reading and writing ONNX needs the package onnx: pip install 'jaxtrelu[onnx]'.",
            name=error.name,
        ) from error
    return onnx


# reading


def from_onnx(
    model: "str | os.PathLike | onnx.ModelProto", *, surrogate: Surrogate | None = None
) -> Network:
    """A network from an ONNX file, whose weights and thresholds are parameters.

    Each ThresholdedRelu becomes a thresholded activation of the variant ``hard``; its `alpha`
    becomes the parameter ``"<name of the node>.threshold"``, a float32 scalar that may be replaced
    by one threshold per channel. Arrays of floating-point numbers that the file holds are
    parameters, too; single numbers, integers and the statistics of a BatchNormalization are
    constants. Convention at the threshold: open where ``x > threshold``, strictly, as in ONNX; NaN
    stays NaN, which ONNX turns into 0.

    Args:
      model: a path, or a loaded model.
      surrogate: such as ``jaxtrelu.Rectangle(0.1)``, in the units of the activations' inputs: what
        gives thresholds of ``hard`` a gradient, which is 0 without one.

    Returns:
      A `Network`, with the file's inputs and outputs in their order.

    Raises:
      TypeError: that is neither a path nor a model.
      FileNotFoundError: there is no such file.
      ValueError: it is no ONNX file, or holds no weights where it names them.
      NotImplementedError: operators that are not known here; all of them are named.
      ImportError: the package onnx is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu import interop
      >>> written = interop.to_onnx(interop.activation(2.0, variant="hard"), shapes=[(None,)])
      >>> network = interop.from_onnx(written)
      >>> network.thresholds, network(jnp.array([1.0, 3.0])).tolist()
      (('y.threshold',), [0.0, 3.0])

    Source: https://onnx.ai/onnx/operators/onnx__ThresholdedRelu.html.
    """
    onnx = _onnx()
    model = _loaded(onnx, model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    if graph.sparse_initializer:
        raise NotImplementedError("the file holds sparse weights, which are not read.")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [_node(onnx, node) for node in graph.node]
    found: list[Node] = []
    thresholds: dict[str, np.ndarray] = {}
    for node, name in zip(*_with_activations(model, nodes, stored, thresholds), strict=True):
        if node.operator == "Constant":
            stored[node.outputs[0]] = _constant(node)
            continue
        if node.operator == "ThresholdedRelu":
            threshold = _unused(f"{name or node.outputs[0]}.threshold", stored, thresholds)
            thresholds[threshold] = np.asarray(node.attributes.get("alpha", 1.0), np.float32)
            node = Node(ACTIVATION, (*node.inputs, threshold), node.outputs, {"variant": "hard"})
        found.append(node)
    if unknown := unknown_operators(found):
        raise NotImplementedError(
            f"the file uses {', '.join(unknown)}, which {'is' if len(unknown) == 1 else 'are'} not "
            "known here. Port that part by hand, with the arrays of onnx.numpy_helper.to_array."
        )
    learned = _learned(nodes, found, stored) | set(thresholds)
    used = {name for node in found for name in node.inputs} | {v.name for v in graph.output}
    stored |= thresholds
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return Network(
        {name: jnp.asarray(value) for name, value in stored.items() if name in learned},
        Graph(
            nodes=tuple(found),
            inputs={v.name: _value(v) for v in graph.input if v.name not in stored},
            outputs={v.name: _value(v) for v in graph.output},
            constants={name: stored[name] for name in stored if name in used - learned},
            opset=max(versions, default=1),
            surrogate=surrogate,
        ),
    )


def _loaded(onnx, model):
    if isinstance(model, onnx.ModelProto):
        return model
    if not isinstance(model, str | os.PathLike):
        advice = "onnx.load_from_string of it" if isinstance(model, bytes) else "one of these"
        raise TypeError(
            "`model` should be the path of an ONNX file, or an onnx.ModelProto, but is "
            f"{type(model).__name__}. Pass {advice}."
        )
    path = Path(model).expanduser()
    try:
        found = onnx.load(os.fspath(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}.") from None
    except Exception as error:  # of protobuf, which has several
        raise ValueError(f"{path} is no ONNX file: {error}.") from None
    if not found.graph.output:
        raise ValueError(f"{path} is no ONNX file: it holds no graph.")
    return found


def _node(onnx, node) -> Node:
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    for name, value in attributes.items():
        if isinstance(value, bytes):
            attributes[name] = value.decode()
        elif isinstance(value, onnx.TensorProto):
            attributes[name] = onnx.numpy_helper.to_array(value)
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return Node(domain + node.op_type, tuple(node.input), tuple(node.output), attributes)


def _constant(node: Node) -> np.ndarray:
    ((kind, value),) = node.attributes.items()
    return np.asarray(value, {"f": np.float32, "i": np.int64}.get(kind.removeprefix("value_")[:1]))


def _value(info) -> Value:
    of = info.type.tensor_type
    axes = None
    if of.HasField("shape"):
        axes = tuple(
            one.dim_value if one.HasField("dim_value") else one.dim_param or None
            for one in of.shape.dim
        )
    return Value(TYPES.get(of.elem_type, "float32"), axes)


def _unused(name: str, *taken) -> str:
    number, chosen = 1, name
    while any(chosen in names for names in taken):
        number += 1
        chosen = f"{name}_{number}"
    return chosen


def _learned(nodes, found, stored) -> set[str]:
    """The names of the arrays that are parameters."""
    statistics = {
        node.inputs[place]
        for node in nodes
        for place in _STATISTICS.get(node.operator, ())
        if place < len(node.inputs)
    }
    constants = {node.outputs[0] for node in nodes if node.operator == "Constant"}
    used = {name for node in found for name in node.inputs}
    return (
        {
            name
            for name, value in stored.items()
            if value.ndim and jnp.issubdtype(value.dtype, jnp.floating) and name in used
        }
        - statistics
        - constants
    )


def _with_activations(model, nodes, stored, thresholds):
    """The nodes and their names, with activations in the place of the nodes that they consist of.

    Their thresholds are moved. Where another program has changed those nodes, they stay as they
    are.
    """
    names = [node.name for node in model.graph.node]
    (described,) = [p.value for p in model.metadata_props if p.key == _KEY] or ["[]"]
    for one in json.loads(described):
        places = [names.index(name) for name in one["nodes"] if name in names]
        inside = [nodes[place] for place in places]
        whole = (
            len(places) == len(one["nodes"])
            and (one["threshold"] in stored or one["threshold"] in thresholds)
            and any(one["x"] in node.inputs for node in inside)
            and any(one["y"] in node.outputs for node in inside)
        )
        if not whole:
            continue
        if one["threshold"] in stored:
            thresholds[one["threshold"]] = stored.pop(one["threshold"])
        nodes[places[-1]] = Node(
            ACTIVATION, (one["x"], one["threshold"]), (one["y"],), one["attributes"]
        )
        for place in sorted(places[:-1], reverse=True):
            del nodes[place], names[place]
    return nodes, names


# writing


def to_onnx(
    network: Network,
    path: "str | os.PathLike | None" = None,
    *,
    shapes: Sequence[Sequence[int | str | None]] | None = None,
) -> "onnx.ModelProto":
    """A network as an ONNX model, with its parameters as they are now; written to a file if asked.

    An activation of the variant ``hard`` with one number as its threshold and 0 where it is closed
    is ONNX's ThresholdedRelu. Any other (``shift``, ``clamp``, a ceiling, a fill, thresholds per
    channel, float64) is an equivalent subgraph of Sub, LessOrEqual and Where, exact bit for bit in
    ONNX Runtime. Convention at the threshold: open where ``x > threshold``, strictly. NaN stays NaN
    in the subgraph; ThresholdedRelu gives 0 for it.

    Args:
      network: as the other functions of this module return it.
      path: the file to write, or None.
      shapes: the shape of each input, such as ``[("batch", 8)]``, with names or None for axes of
        any size. Needed for a network that does not know them (from PyTorch, Flax, `activation`).

    Returns:
      The ``onnx.ModelProto``.

    Raises:
      TypeError: that is no network.
      ValueError: shapes are missing, or do not fit; a threshold is NaN; or the network's operators
        are too old for the subgraph.
      ImportError: the package onnx is not installed.
      OSError: the file cannot be written; an existing one is left as it was.

    Example:
      >>> from jaxtrelu import interop
      >>> model = interop.to_onnx(interop.activation(0.5, variant="hard"), shapes=[(None,)])
      >>> [node.op_type for node in model.graph.node]
      ['ThresholdedRelu']
      >>> model = interop.to_onnx(interop.activation(0.5), shapes=[(None,)])
      >>> [node.op_type for node in model.graph.node]
      ['Sub', 'LessOrEqual', 'Where']

    Source: https://onnx.ai/onnx/operators/.
    """
    onnx = _onnx()
    if not isinstance(network, Network):
        raise TypeError(
            f"`network` should be a jaxtrelu.interop.Network, but is {type(network).__name__}. "
            "Pass what from_onnx, from_keras, from_torch, from_flax or activation returns."
        )
    graph = network.graph
    inputs = _inputs(graph, shapes)
    writer = _Writer(onnx, network)
    for node in graph.nodes:
        writer.write(node)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            writer.nodes,
            "network",
            [_information(onnx, name, value) for name, value in inputs.items()],
            [_information(onnx, name, value) for name, value in _outputs(network, inputs).items()],
            writer.stored,
        ),
        opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
        producer_name="jaxtrelu",
    )
    # The oldest that has these operators: a newer one is refused by older runtimes.
    model.ir_version = max(8, onnx.helper.find_min_ir_version_for(model.opset_import))
    if writer.described:
        onnx.helper.set_model_props(model, {_KEY: json.dumps(writer.described)})
    onnx.checker.check_model(model)
    if path is not None:
        file = Path(path).expanduser()
        try:
            _files.write_file(_files.check_file(file), model.SerializeToString())
        except _files.OutputError as error:
            raise OSError(str(error)) from None
    return model


def _inputs(graph: Graph, shapes) -> dict[str, Value]:
    """The inputs with their shapes, which ONNX wants to know the number of axes of."""
    if shapes is None:
        unknown = [name for name, value in graph.inputs.items() if value.shape is None]
        if unknown:
            raise ValueError(
                f"the network does not know the shape of its input {unknown[0]!r}. Pass shapes="
                '[("batch", 8)], one shape for each input, with names for axes of any size.'
            )
        return dict(graph.inputs)
    if len(shapes) != len(graph.inputs):
        raise ValueError(
            f"`shapes` should hold one shape for each of {len(graph.inputs)} inputs, but holds "
            f"{len(shapes)}."
        )
    return {
        name: dataclasses.replace(value, shape=tuple(shape))
        for (name, value), shape in zip(graph.inputs.items(), shapes, strict=True)
    }


def _outputs(network: Network, inputs: dict[str, Value]) -> dict[str, Value]:
    """The outputs as they are for these inputs."""
    names: dict[str, str] = {}

    def symbol(axis) -> str:
        if isinstance(axis, int):
            return str(axis)
        # Names of ONNX are any texts, and those of JAX are not.
        key = axis if axis is not None else f"axis {len(names)}"
        return names.setdefault(key, f"n{len(names)}")

    scope = export.SymbolicScope()
    types = []
    for value in inputs.values():
        axes = ", ".join(symbol(axis) for axis in value.shape or ())
        shape = export.symbolic_shape(axes, scope=scope) if axes else ()
        types.append(jax.ShapeDtypeStruct(shape, value.dtype))
    try:
        results = jax.eval_shape(network, *types)
    except NotImplementedError:
        raise
    except Exception as error:
        if any(
            not isinstance(axis, int) for value in inputs.values() for axis in value.shape or ()
        ):
            raise ValueError(
                "the network cannot be computed for axes of any size; pass shapes=... with whole "
                f"numbers. ({str(error).splitlines()[0]})"
            ) from None
        raise ValueError(f"the inputs' shapes do not fit the network: {error}") from None
    results = results if isinstance(results, tuple) else (results,)
    back = {short: name for name, short in names.items() if not name.startswith("axis ")}

    def axis_of(size):
        return size if isinstance(size, int) else back.get(str(size))

    return {
        name: Value(result.dtype.name, tuple(axis_of(size) for size in result.shape))
        for name, result in zip(network.graph.outputs, results, strict=True)
    }


def _information(onnx, name: str, value: Value):
    return onnx.helper.make_tensor_value_info(name, _NUMBERS[value.dtype], value.shape)


class _Writer:
    """Collects what a graph of ONNX consists of."""

    def __init__(self, onnx, network: Network):
        self.onnx, self.network, self.graph = onnx, network, network.graph
        self.nodes: list = []
        self.stored: list = []
        self.described: list[dict] = []
        thresholds = set(network.thresholds)
        statistics = {
            node.inputs[place]
            for node in self.graph.nodes
            for place in _STATISTICS.get(node.operator, ())
        }
        for name, value in network.parameters.items():
            if name not in thresholds:
                self.store(name, np.asarray(value))
        for name, value in self.graph.constants.items():
            learnable = value.ndim and jnp.issubdtype(value.dtype, jnp.floating)
            if learnable and name not in statistics:
                # As a node: what is stored is a parameter to who reads the file again.
                held = onnx.numpy_helper.from_array(value)
                self.nodes.append(onnx.helper.make_node("Constant", [], [name], value=held))
            else:
                self.store(name, value)

    def store(self, name: str, value: np.ndarray) -> None:
        self.stored.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))

    def write(self, node: Node) -> None:
        if node.operator == ACTIVATION:
            self.activation(node)
        else:
            self.add(node.operator, node.inputs, node.outputs, **_attributes(self.onnx, node))

    def add(self, operator: str, inputs: Iterable[str], outputs: Iterable[str], **attributes):
        made = self.onnx.helper.make_node(operator, [*inputs], [*outputs], **attributes)
        self.nodes.append(made)
        return made

    def activation(self, node: Node) -> None:
        x, held = node.inputs
        (y,) = node.outputs
        threshold = np.asarray(self.network.parameters.get(held, self.graph.constants.get(held)))
        if np.isnan(threshold).any():
            raise ValueError(
                f"the threshold {held!r} is NaN, which no operator of ONNX stands for."
            )
        dtype = jnp.dtype(next(iter(self.graph.inputs.values())).dtype)
        if _is_standard(node, threshold, dtype):
            alpha = float(threshold.reshape(()))
            self.add("ThresholdedRelu", [x], [y], name=_name_of(held), alpha=alpha)
            return
        if self.graph.opset < _LEAST_OPSET:
            raise ValueError(
                f"the network is of version {self.graph.opset} of ONNX's operators, and its "
                f"thresholds need {_LEAST_OPSET}. Read it from "
                "onnx.version_converter.convert_version(model, 17)."
            )
        self.subgraph(node, held, threshold, dtype)

    def subgraph(self, node: Node, held: str, threshold: np.ndarray, dtype) -> None:
        x, (y,) = node.inputs[0], node.outputs
        wide = computation_dtype(dtype, threshold.dtype)
        first = len(self.nodes)
        if held not in {tensor.name for tensor in self.stored}:
            self.store(held, threshold.astype(wide))

        def step(operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
            output = output or f"{y}/{operator}"
            self.add(operator, inputs, [output], name=f"{y}/{operator}/{len(self.nodes)}",
                     **attributes)  # fmt: skip
            return output

        def number(what: str, value) -> str:
            self.store(f"{y}/{what}", np.asarray(value, wide))
            return f"{y}/{what}"

        narrow = wide != dtype
        given = step("Cast", x, to=_NUMBERS[wide.name]) if narrow else x
        opened, closed = _BODIES[node.attributes["variant"]](
            step, number, given, held, node.attributes
        )
        is_closed = step("LessOrEqual", given, held)
        chosen = step("Where", is_closed, closed, opened, output=f"{y}/wide" if narrow else y)
        if narrow:
            step("Cast", chosen, output=y, to=_NUMBERS[dtype.name])
        self.described.append(
            {
                "x": x,
                "y": y,
                "threshold": held,
                "attributes": dict(node.attributes),
                "nodes": [made.name for made in self.nodes[first:]],
            }
        )


def _attributes(onnx, node: Node) -> dict[str, Any]:
    return {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }


def _is_standard(node: Node, threshold: np.ndarray, dtype) -> bool:
    """Whether ThresholdedRelu is this activation: its alpha is one float32 number."""
    fill = node.attributes.get("fill", 0)
    return (
        node.attributes["variant"] in _STANDARD
        and fill == 0
        and not np.signbit(fill)
        and threshold.size == 1
        and threshold.ndim == 0
        and threshold.dtype == np.float32
        and dtype in (np.float32, np.float16)
    )


def _name_of(threshold: str) -> str:
    """The name of the node that `from_onnx` calls this threshold after, or none."""
    name, _, last = threshold.rpartition(".")
    return name if last == "threshold" else ""


#: The variants that ThresholdedRelu computes.
_STANDARD = {"hard"}


def _shift(step: Callable, number: Callable, x: str, threshold: str, attributes):
    above = step("Sub", x, threshold)
    ceiling = attributes.get("ceiling")
    if ceiling is not None:
        most = number("ceiling", ceiling)
        # Not Min, so that NaN stays NaN whatever the runtime.
        over = step("Greater", above, most)
        above = step("Where", over, most, above, output=f"{above}/capped")
    return above, number("zero", 0)


def _hard(step: Callable, number: Callable, x: str, threshold: str, attributes):
    return x, number("fill", attributes.get("fill", 0))


def _clamp(step: Callable, number: Callable, x: str, threshold: str, attributes):
    return x, threshold


#: ``(step, number, x, threshold, attributes) -> (where open, where closed)``, by variant.
_BODIES: dict[str, Callable] = {"shift": _shift, "hard": _hard, "clamp": _clamp}
