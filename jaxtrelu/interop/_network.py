"""A network taken over from elsewhere: nodes in the order in which they run, and their parameters.

Nodes are ONNX operators, with the meaning that they have there, and one that ONNX has not:
`ACTIVATION`, the thresholded ReLU of this library, whose threshold is its second input.
"""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Real, Shaped

from jaxtrelu._activation import thresholded_relu
from jaxtrelu._primitive.spec import VariantName, check_fill, checked_spec
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.interop._operators import OPERATORS, OperatorError, static_array

#: The operator of a thresholded activation; attributes `variant`, `ceiling` and `fill`.
ACTIVATION = "ThresholdedActivation"
#: The version of ONNX's operators in networks that come from elsewhere: the first with Gelu.
OPSET = 20


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: its operator, the names of what it takes and gives, and what is fixed."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of an input or an output."""

    dtype: str = "float32"
    shape: tuple[int | str | None, ...] | None = None
    """A number, a name or None for each axis; None: unknown."""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """What of a network is no parameter. Two graphs are equal if they are one."""

    nodes: tuple[Node, ...]
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    constants: Mapping[str, np.ndarray]
    """What is computed with and is not learned."""
    opset: int
    """The version of ONNX's operators that the nodes are of."""
    surrogate: Surrogate | None = None

    def __post_init__(self) -> None:
        checked_spec("hard", surrogate=self.surrogate)  # refused here, not at the first gradient

    @property
    def activations(self) -> tuple[Node, ...]:
        """The thresholded activations."""
        return tuple(node for node in self.nodes if node.operator == ACTIVATION)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["parameters"], meta_fields=["graph"]
)
@dataclasses.dataclass(frozen=True, eq=False)  # so that jax.jit takes it as a function
class Network:
    """A network taken over from ONNX, Keras, PyTorch or Flax, whose thresholds are parameters.

    A pytree with `parameters` as its leaves, so `jax.grad` and `jax.jit` take the network itself.
    (So does Optax, but not as labels or masks, where it calls what can be called: train
    `parameters`, and `replace` them.) Call it with its inputs.

    Convention at the threshold: open where ``x > threshold``, strictly; NaN stays NaN, where ONNX's
    operator turns it into 0.

    Args:
      parameters: weights, biases and thresholds by name.
      graph: the nodes between them; not a leaf.

    Raises:
      ValueError: called with another number of inputs, or with such as its operators do not take,
        of another width for example; says their shapes.
      NotImplementedError: an operator cannot be computed as the graph asks for it; says which.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxtrelu import Rectangle, interop
      >>> network = interop.activation(0.5, variant="hard", surrogate=Rectangle(1.0))
      >>> network(jnp.array([0.25, 2.0])).tolist()
      [0.0, 2.0]
      >>> gradient = jax.grad(lambda network: network(jnp.array([0.25, 2.0])).sum())(network)
      >>> gradient.parameters["threshold"].item()
      -0.5
    """

    parameters: dict[str, jax.Array]
    graph: Graph

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(names) for names in (self.graph.inputs, self.graph.outputs))
        return (
            f"Network({inputs} -> {outputs}: {len(self.graph.nodes)} nodes, {len(self.parameters)} "
            f"parameters, thresholds {', '.join(self.thresholds) or 'none'})"
        )

    @property
    def thresholds(self) -> tuple[str, ...]:
        """The names of the thresholds among the parameters, in the order in which they are applied.

        Example:
          >>> from jaxtrelu import interop
          >>> interop.activation(0.5).thresholds
          ('threshold',)
        """
        names = (node.inputs[1] for node in self.graph.activations)
        return tuple(dict.fromkeys(name for name in names if name in self.parameters))

    def replace(self, parameters: Mapping[str, ArrayLike]) -> "Network":
        """The same network with other values of some parameters, given by name.

        Args:
          parameters: the new values; what is not named stays. A threshold may change its shape, to
            one that broadcasts against what is activated: one number becomes one per channel.

        Returns:
          A new network.

        Raises:
          ValueError: there is no such parameter, or the shape of one that is no threshold differs.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxtrelu import interop
          >>> network = interop.activation(0.5).replace({"threshold": jnp.array([0.0, 1.0])})
          >>> network(jnp.array([2.0, 2.0])).tolist()
          [2.0, 1.0]
        """
        merged = dict(self.parameters)
        for name, value in parameters.items():
            if name not in merged:
                known = ", ".join(merged)
                raise ValueError(f"there is no parameter {name!r}; there are: {known}.")
            value = jnp.asarray(value, merged[name].dtype)
            if name not in self.thresholds and value.shape != merged[name].shape:
                raise ValueError(
                    f"{name!r} has shape {merged[name].shape}, and not {value.shape}. Only a "
                    "threshold may change its shape."
                )
            merged[name] = value
        return Network(merged, self.graph)

    def __call__(self, *inputs: Shaped[ArrayLike, "..."]) -> Array | tuple[Array, ...]:
        """The output for these inputs; a tuple where the network has several."""
        graph = self.graph
        if len(inputs) != len(graph.inputs):
            raise ValueError(
                f"the network takes {len(graph.inputs)} inputs ({', '.join(graph.inputs)}), and "
                f"not {len(inputs)}."
            )
        if named := [v for v in inputs if isinstance(v, Mapping)]:
            raise TypeError(
                f"the network takes arrays, in the order of its inputs ({', '.join(graph.inputs)}),"
                f" and not a {type(named[0]).__name__} of them."
            )
        values: dict[str, Any] = {"": None, **graph.constants, **self.parameters}
        values |= {n: jnp.asarray(v) for n, v in zip(graph.inputs, inputs, strict=True)}
        for node in graph.nodes:
            given = [values[name] for name in node.inputs]
            try:
                results = _computed(graph, node, given)
            except (TypeError, ValueError) as error:
                called = ", ".join(f"{n} of shape {np.shape(values[n])}" for n in graph.inputs)
                shapes = " and ".join(str(np.shape(v)) for v in given if v is not None)
                raise ValueError(
                    f"the network cannot be computed for {called}: {node.operator} (output "
                    f"{node.outputs[0]!r}) is given shapes {shapes}, and says: {error}"
                ) from error
            values |= dict(zip(node.outputs, results, strict=False))
        outputs = tuple(jnp.asarray(values[name]) for name in graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def _computed(graph: Graph, node: Node, given: list) -> tuple:
    if node.operator == ACTIVATION:
        surrogate = graph.surrogate if takes(graph.surrogate, node) else None
        return (thresholded_relu(*given, **node.attributes, surrogate=surrogate),)
    try:
        results = OPERATORS[node.operator](node.attributes, graph.opset, *given)
    except OperatorError as error:
        named = node.outputs[0]
        raise NotImplementedError(f"{node.operator} (output {named!r}): {error}") from None
    return results if isinstance(results, tuple) else (results,)


def takes(surrogate: Surrogate | None, node: Node) -> bool:
    """Whether an activation jumps, so that its threshold learns by the surrogate alone."""
    return surrogate is not None and checked_spec(**node.attributes).traits.jump is not None


def unknown_operators(nodes) -> list[str]:
    """The operators among those of `nodes` that are not known, each once."""
    found = {node.operator for node in nodes}
    return sorted(found - set(OPERATORS) - {ACTIVATION})


class Builder:
    """Collects the nodes of a network that is made layer by layer."""

    def __init__(self, surrogate: Surrogate | None, opset: int = OPSET):
        self.nodes: list[Node] = []
        self.parameters: dict[str, jax.Array] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.surrogate, self.opset = surrogate, opset
        self._taken: set[str] = set()

    def named(self, name: str) -> str:
        """A name that was not given out before."""
        chosen, number = name, 1
        while chosen in self._taken:
            number += 1
            chosen = f"{name}_{number}"
        self._taken.add(chosen)
        return chosen

    def parameter(self, name: str, value) -> str:
        """A parameter."""
        name = self.named(name)
        self.parameters[name] = jnp.asarray(value)
        return name

    def constant(self, name: str, value) -> str:
        """A number, or an array of them, that is not learned."""
        name = self.named(name)
        self.constants[name] = static_array(value)
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes) -> str:
        """A node with one output, whose name is returned."""
        output = self.named(name or operator)
        self.nodes.append(Node(operator, inputs, (output,), attributes))
        return output

    def activation(
        self, x: str, name: str, threshold, *, variant="shift", ceiling=None, fill=0
    ) -> str:
        """A thresholded activation; its threshold becomes a parameter, float32 at least."""
        spec = checked_spec(variant, ceiling, fill)
        threshold = jnp.asarray(threshold)
        if threshold.dtype not in (jnp.float32, jnp.float64):
            threshold = threshold.astype(jnp.float32)
        held = self.parameter(f"{name}.threshold" if name else "threshold", threshold)
        attributes = {"variant": spec.variant, "ceiling": spec.ceiling, "fill": spec.fill}
        return self.add(ACTIVATION, x, held, name=name or "y", **attributes)

    def network(self, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> Network:
        """The network."""
        nodes, constants = tuple(self.nodes), dict(self.constants)
        graph = Graph(nodes, dict(inputs), dict(outputs), constants, self.opset, self.surrogate)
        return Network(dict(self.parameters), graph)


def activation(
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Network:
    """A network of one thresholded activation: what `to_onnx` writes as one.

    Convention at the threshold: open where ``x > threshold``, strictly.

    Args:
      threshold: a number, or an array that broadcasts against the inputs, in their units. Kept in
        float32 at least; a number is rounded to `dtype` first, as `jaxtrelu.thresholded_relu` does.
      variant: as in `jaxtrelu.thresholded_relu`, as are `ceiling` and `fill`.
      ceiling: for ``shift``, the largest value, or None.
      fill: for ``hard``, the value where the gate is closed.
      surrogate: for ``hard``, by which its threshold learns, or None.
      dtype: of the inputs.

    Returns:
      A `Network` with the parameter ``"threshold"``, the input ``"x"`` and the output ``"y"``.

    Raises:
      TypeError, ValueError: as `jaxtrelu.thresholded_relu`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxtrelu import interop
      >>> interop.activation(1.0)(jnp.array([0.5, 3.0])).tolist()
      [0.0, 2.0]

    Source: as `jaxtrelu.thresholded_relu`.
    """
    check_fill(checked_spec(variant, ceiling, fill, surrogate), jnp.dtype(dtype))
    if isinstance(threshold, numbers.Real):
        threshold = np.asarray(threshold, jnp.dtype(dtype))
    builder = Builder(surrogate)
    value = Value(jnp.dtype(dtype).name)
    y = builder.activation("x", "", threshold, variant=variant, ceiling=ceiling, fill=fill)
    return builder.network({"x": value}, {y: value})


#: Makes the nodes of a layer: ``(builder, name, layer, x) -> output``.
Rule = Callable[[Builder, str, Any, str], str]
