"""The fused linear layer: a thresholded activation of x @ w + b that keeps no pre-activation.

Two primitives, so that the lowering is chosen per platform: the product with its epilogue, and the
three gradients from the cotangent and the packed gate. They are tied together by a
`jax.custom_vjp`: a matrix product with its insides fused has no useful forward mode.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import batching
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from jaxtrelu import _compat
from jaxtrelu._compat import Primitive
from jaxtrelu._primitive import formulas, lowering
from jaxtrelu._primitive.packing import Packing, parts_of
from jaxtrelu._primitive.partition import Layout, distributed, layout_of
from jaxtrelu._primitive.rules import once, partitioning_devices, thresholded, vary_together
from jaxtrelu._primitive.spec import (
    ImplementationName,
    Spec,
    VariantName,
    accumulator_dtype,
    checked_spec,
    linear_operands,
)
from jaxtrelu._surrogates import Surrogate


def thresholded_linear(
    x: Float[ArrayLike, "*batch d"],
    w: Float[ArrayLike, "d n"],
    threshold: Real[ArrayLike, "..."] = 1.0,
    *,
    b: Float[ArrayLike, " n"] | None = None,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
) -> Float[Array, "*batch n"]:
    """Linear layer with a thresholded ReLU, fused: ``thresholded_relu(x @ w + b, threshold)``.

    The product is accumulated, biased and compared in float32 at least, then rounded once. Reverse
    mode keeps x, w and one bit per output, not the pre-activation; a surrogate adds what it adds to
    `thresholded_relu`. Reverse mode only, unless a surrogate is given: for forward mode or higher
    derivatives write ``thresholded_relu(x @ w + b, threshold)``.

    Convention at the threshold: the gate is closed at ``x @ w + b == threshold``, and the
    derivative there is 0, as in `thresholded_relu`.

    Args:
      x: floating-point array (..., d).
      w: array (d, n) of x's dtype, as Flax's kernels are.
      threshold: a number, or an array that broadcasts against the output's shape (..., n), in the
        output's units.
      b: array (n,), or None for no bias.
      variant: ``"shift"``, ``"hard"`` or ``"clamp"``.
      ceiling: for ``shift``, the largest value, a positive Python number.
      fill: for ``hard``, the value where the gate is closed.
      surrogate: as in `thresholded_relu`, in the output's units; XLA only.
      implementation: None chooses a lowering by platform and shape; ``"xla"``, ``"mosaic_tpu"`` or
        ``"experimental_mosaic_gpu"``, of which nothing was timed, asks for one by name.

    Returns:
      An array (..., n) of x's dtype.

    Raises:
      TypeError: an operand is not floating point, or the dtypes of x and w differ.
      ValueError: shapes that do not fit; else as `thresholded_relu`.
      NotImplementedError: the implementation asked for cannot compute this call, and why.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> x, w = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> jaxtrelu.thresholded_linear(x, w, 2.0, b=jnp.array([0.5, 0.0])).tolist()
      [[1.5, 0.0]]

    Source: the definition.
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    x, w, b, threshold = linear_operands(x, w, b, threshold, spec)
    shape = (*x.shape[:-1], w.shape[1])
    # Inside a shard_map all operands vary together: the transpose of that sums the gradients.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    operands = vary_together(rows, w, b[None], _threshold_by_row(threshold, shape))
    if spec.surrogate is None:
        return _linear(spec, *operands).reshape(shape)
    if spec.implementation not in (None, "xla"):
        raise NotImplementedError(
            f"implementation={spec.implementation!r} cannot compute this call: its kernels of "
            "linear layers have no surrogate. Pass implementation=None."
        )
    return _estimated(spec, *operands).reshape(shape)


def _threshold_by_row(threshold: jax.Array, shape: tuple) -> jax.Array:
    """The threshold as (1 or rows, 1 or columns)."""
    if threshold.ndim == 0:
        return threshold[None, None]
    lead = threshold.shape[:-1]
    if all(n == 1 for n in lead):
        return threshold.reshape(1, threshold.shape[-1])
    spread = jnp.broadcast_to(threshold, (*shape[:-1], threshold.shape[-1]))
    return spread.reshape(-1, threshold.shape[-1])


def _pre_activation(x, w, b):
    accumulate = accumulator_dtype(x.dtype)
    return jnp.matmul(x, w, preferred_element_type=accumulate) + b.astype(accumulate)


def _estimated(spec: Spec, x, w, b, threshold):
    """With a surrogate: by the rules of the activation itself, of the unrounded pre-activation."""
    return thresholded(_pre_activation(x, w, b), threshold, spec).astype(x.dtype)


# the gradient


def _by_row(columns: int) -> Packing:
    """Each row is packed by itself, in as many parts as devices may share the columns."""
    shared = isinstance(columns, int) and columns > 0
    return Packing(parts=parts_of(columns, partitioning_devices()) if shared else 1)


def _packing_of(words: jax.Array) -> Packing:
    """How words were packed by row."""
    return Packing(parts=words.shape[1] if words.ndim == 3 else 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(spec: Spec, x, w, b, threshold):
    (y,) = _computed(spec, ("value",), x, w, b, threshold)
    return y


def _computed(spec: Spec, outputs: tuple[str, ...], *operands) -> list[jax.Array]:
    def local(share, x, w, b, threshold):
        packing = _by_row(w.shape[1])
        return linear_p.bind(x, w, b, threshold, spec=spec, packing=packing, outputs=outputs)

    if (layout := _explicit(*operands)) is None:
        return local(None, *operands)
    taken = ("bd", "dm", "im", _threshold_like(operands[3].shape))
    return distributed(layout, local, operands, taken, ["bm", "bw"][: len(outputs)])


def _explicit(x, w, *rest) -> Layout | None:
    """The layout on an explicit mesh, where contractions over what is sharded want to be told."""
    layout = layout_of(x, w, 1)
    return layout if layout is not None and layout.axes is not None else None


def _threshold_like(shape: tuple) -> str:
    """The dimensions of a threshold of this shape by row."""
    return ("b" if shape[0] > 1 else "i") + ("m" if shape[1] > 1 else "j")


def _forward(spec: Spec, x, w, b, threshold):
    y, words = _computed(spec, ("value", "gate"), x, w, b, threshold)
    # Only the dtype of the bias and the shape of the threshold are needed: 0-sized stand-ins.
    return y, (
        x,
        w,
        jnp.zeros((0,), b.dtype),
        jnp.zeros((0, *threshold.shape), threshold.dtype),
        words,
    )


def _backward(spec: Spec, kept, ct):
    return once("thresholded_linear", functools.partial(_gradients, spec))(kept, ct)


def _gradients(spec: Spec, kept, ct):
    """With g = s ct where open, else 0, s the slope in the input: dx = g w', dw = x' g, db = sum g.

    The threshold's is the sum of its slopes, where open and where closed, times ct.
    """
    x, w, b, threshold, words = kept

    def local(share, x, w, ct, words):
        dx, dw, total = linear_gradient_p.bind(
            x, w, ct, words, packing=_packing_of(words), implementation=spec.implementation
        )
        return dx, dw, total, _threshold_gradient(spec, threshold, ct, words, total)

    if (layout := _explicit(x, w)) is None:
        dx, dw, total, dt = local(None, x, w, ct, words)
    else:
        found = _threshold_like(threshold.shape[1:])
        over = "".join(dimension for dimension in "bm" if dimension not in found)
        taken, given = ("bd", "dm", "bm", "bw"), ("bd/m", "dm/b", "im/b", f"{found}/{over}")
        dx, dw, total, dt = distributed(layout, local, (x, w, ct, words), taken, given)
    if (slope := spec.traits.input_slope) != 1:
        dx, dw, total = slope * dx, slope * dw, slope * total
    return dx, dw, total.astype(b.dtype), dt


def _threshold_gradient(spec: Spec, threshold, ct, words, total):
    shape = threshold.shape[1:]
    opened, closed = spec.traits.threshold_slope
    if not (opened or closed):
        # Of the shape that it has on this device.
        own = (one if one == 1 else size for one, size in zip(shape, ct.shape, strict=True))
        return jnp.zeros(tuple(own), threshold.dtype)
    if shape[0] == 1:  # from the columns' sums, without another pass over the cotangent
        dt = opened * total
        if closed:
            dt = dt + closed * (jnp.sum(ct, 0, keepdims=True, dtype=total.dtype) - total)
    else:
        mask = _packing_of(words).unpack(words, ct.shape)
        ct = ct.astype(total.dtype)
        dt = jnp.where(mask, opened * ct if opened else 0.0, closed * ct if closed else 0.0)
    if shape[1] == 1:
        dt = jnp.sum(dt, 1, keepdims=True)
    return dt.astype(threshold.dtype)


_linear.defvjp(once("thresholded_linear", _forward, 1), _backward)


# the primitives


def _linear_xla(x, w, b, threshold, *, spec: Spec, packing: Packing, outputs):
    z = _pre_activation(x, w, b)
    results = []
    for output in outputs:
        if output == "value":
            results.append(formulas.value(z, threshold, spec).astype(x.dtype))
        else:
            results.append(packing.pack(formulas.gate(z, threshold, spec)))
    # Tied together, or XLA puts the packing off and keeps the pre-activation for it.
    return list(lax.optimization_barrier(tuple(results))) if len(results) > 1 else results


def _gradient_xla(x, w, ct, words, *, packing: Packing, implementation):
    ct, words = lax.optimization_barrier((ct, words))
    gated = jnp.where(packing.unpack(words, ct.shape), ct, jnp.zeros((), ct.dtype))
    return [
        jnp.matmul(gated, w.T).astype(x.dtype),
        jnp.matmul(x.T, gated).astype(w.dtype),
        jnp.sum(gated, 0, keepdims=True, dtype=accumulator_dtype(ct.dtype)),
    ]


def _primitive(name: str, xla: Callable, implementation_of, static) -> Primitive:
    """A primitive that is batched as its XLA form is, or as a loop over a kernel asked for."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*avals, **params):
        return [
            _compat.like_type(avals[0], o)
            for o in jax.eval_shape(functools.partial(xla, **params), *avals)
        ]

    def batch(operands, dims, **params):
        if implementation_of(params) in (None, "xla"):
            results = jax.vmap(functools.partial(xla, **params), in_axes=tuple(dims))(*operands)
        else:  # a kernel takes one product, so it runs once per example
            pairs = list(zip(operands, dims, strict=True))
            mapped = [jnp.moveaxis(o, d, 0) for o, d in pairs if d is not None]

            def example(mapped):
                rest = iter(mapped)
                one = [o if d is None else next(rest) for o, d in pairs]
                return primitive.bind(*one, **params)

            results = lax.map(example, mapped)
        return results, [0] * len(results)

    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    lowering.register(primitive, xla, implementation_of, static)
    return primitive


linear_p = _primitive(
    "thresholded_linear",
    _linear_xla,
    lambda params: params["spec"].implementation,
    ("spec", "packing", "outputs"),
)
linear_gradient_p = _primitive(
    "thresholded_linear_gradient",
    _gradient_xla,
    lambda params: params["implementation"],
    ("packing", "implementation"),
)
