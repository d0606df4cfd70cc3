"""The gated product: only the gate is dense, and the other two weights are read where it is open.

With z = x @ w_gate.T + b_gate, its open entries E, a = act(z) and on E
u[b, f] = x[b] . w_up[f] + b_up[f]:

    y[b] = sum over f of (a u)[b, f] w_out[f]
    dh[b, f] = g[b] . w_out[f]      da = dh u      du = dh a      dz, dθ = pullback of act of da
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu import bits
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.partition import Share, distributed, layout_of, like
from jaxtrelu._primitive.rules import once, varying_like
from jaxtrelu._primitive.spec import (
    Block,
    ImplementationName,
    Spec,
    VariantName,
    block_operands,
    check_skips,
    checked_spec,
)
from jaxtrelu._surrogates import Surrogate
from jaxtrelu.sparse._block import (
    CROSSOVER,
    Plan,
    Products,
    activated,
    biased,
    checked_products,
    compiled_once,
    encoded,
    finished,
    passed,
    planned,
    product_of_nonzeros,
    projected,
    takes_dense,
)
from jaxtrelu.sparse._entries import (
    KEPT,
    Entries,
    groups_of,
    kept,
    list_entries,
    position,
    restored,
    support_of,
)
from jaxtrelu.sparse._loops import ceil_div, repeat, take
from jaxtrelu.sparse._screen import (
    Precision,
    Screen,
    checked_screen,
    dimensions_of,
    screened_support,
)
from jaxtrelu.sparse._sums import entry_dots, gather_sum, row_dots, scalar_sum, weighted_rows

# Up to this many examples the weights of all units that any of them opens are read together.
FEW = 8
# As `CROSSOVER`, for a few examples, where weights are read and hardly anything else happens.
CROSSOVER_FEW = 1 / 2
# Units in a round of small dense products.
_ROUND = 128
# The same for a single example, whose weights are not copied together first.
_ROUND_OF_ONE = 64


def gated_mlp(
    x: Float[ArrayLike, "*batch d"],
    w_gate: Float[ArrayLike, "h d"],
    w_up: Float[ArrayLike, "h d"],
    w_out: Float[ArrayLike, "h d_out"],
    threshold: Float[ArrayLike, "..."] = 1.0,
    *,
    b_gate: Float[ArrayLike, " h"] | None = None,
    b_up: Float[ArrayLike, " h"] | None = None,
    b_out: Float[ArrayLike, " d_out"] | None = None,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
    capacity: int | None = None,
    products: Products | None = None,
    screen: Screen | Precision | bool | None = None,
) -> Float[Array, "*batch d_out"]:
    """``(act(x @ w_gate.T) * (x @ w_up.T)) @ w_out``, reading open units' weights only.

    The first product is dense; of `w_up` and `w_out` only what belongs to open gates is read: for
    up to 8 examples, as in decoding, in rounds of small dense products over the units that any of
    them opens; for batches, entry by entry. Biases are added where they are given. The result is
    that of the dense function to rounding: where more gates are open than `capacity` allows for,
    dense products are taken, chosen on the device.

    Convention at the threshold: open where ``x @ w_gate.T > threshold``, strictly; NaN is open.
    What is near the threshold is decided on float32 sums, also for bfloat16 operands: a dense
    model that rounds the pre-activations to bfloat16 first opens other gates there. A closed gate
    contributes nothing, as in `jaxtrelu.sparse_mlp`.

    Args:
      x: (..., d), floating point.
      w_gate: (h, d), feature-major.
      w_up: (h, d), feature-major.
      w_out: (h, d_out), feature-major.
      threshold: a number or (h,), in the units of the gate's pre-activations.
      b_gate: (h,), or None.
      b_up: (h,), or None.
      b_out: (d_out,), or None.
      variant: ``"shift"`` (shifted ReLU) or ``"hard"`` (FATReLU).
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      fill: 0: a closed gate lets nothing through.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``, or None.
      implementation: None or ``"xla"``; the kernels have none for this product.
      capacity: the mean number of open gates of an example up to which the sparse path is taken; a
        hint, not a limit. For up to 8 examples, where no gradient is taken, it is compared with the
        number of units that any of them opens, and not with a mean. Default: h / 2 for up to 8
        examples, h / 32 for more (at least 32): about where dense becomes faster on a CPU.
      products: as in `jaxtrelu.sparse_mlp`, ``"loops"`` or ``"dense"``.
      screen: as in `jaxtrelu.sparse_mlp`, of `w_gate`; for more than 8 examples, and where a
        gradient is taken. In decoding the gate's product reads its weights once, which rounded
        ones would not make faster, and stays dense.

    Returns:
      y of shape (..., d_out), in x's dtype, summed in float32 at least. Differentiable with respect
      to all operands.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, a variant or a fill that leaves no zeros, or a surrogate
        of unbounded support.
      NotImplementedError: the implementation asked for cannot compute this call.

    Example:
      >>> import jax.numpy as jnp, jaxtrelu
      >>> x, w = jnp.array([1.0, 2.0]), jnp.eye(2)
      >>> jaxtrelu.gated_mlp(x, w, 10 * w, w, 1.0, variant="hard").tolist()
      [0.0, 40.0]

    Source: Kurtz et al. 2020 (FATReLU); Mirzadeh et al. 2023, arXiv 2310.04564.
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    check_skips(spec, "gated_mlp")
    weights, biases = {"w_gate": w_gate, "w_up": w_up}, {"b_gate": b_gate, "b_up": b_up}
    block = block_operands(x, weights, w_out, threshold, biases, b_out)
    products = checked_products(products, ("dense", "loops"), "gated_mlp")
    plan, operands = gated_call(spec, capacity, products, block)
    screen = checked_screen(screen, operands.w_gate)
    filled = all(o.size for o in (operands.x, operands.w_gate, operands.w_out))
    y = gated(plan, operands, screen) if filled else gated_dense(plan, operands)
    return finished(y, block.b_out, block.lead, block.x.dtype)


def gated_call(spec: Spec, capacity, products, block: Block) -> tuple[Plan, "GatedOperands"]:
    """The static part of a call, and operands that vary over the same axes of a `shard_map`."""
    examples, units = block.x.shape[0], block.w_out.shape[0]
    share = CROSSOVER_FEW if _few(examples) else CROSSOVER
    (w_gate, w_up), (b_gate, b_up) = block.w_in, block.b_in
    operands = GatedOperands(block.x, w_gate, w_up, block.w_out, block.threshold, b_gate, b_up)
    leaves = jax.tree.leaves(operands)
    operands = jax.tree.map(lambda leaf: varying_like(leaf, *leaves), operands)
    layout = layout_of(block.x, block.w_out)
    return planned(spec, capacity, share, (examples, units), layout, products), operands


def _few(examples) -> bool:
    """Whether it is decoding; a batch of a size that is not known is none."""
    return isinstance(examples, int) and examples <= FEW


class GatedOperands(NamedTuple):
    """x (B, d), w_gate (h, d), w_up (h, d), w_out (h, d_out), threshold, b_gate, b_up (h,)."""

    x: jax.Array
    w_gate: jax.Array
    w_up: jax.Array
    w_out: jax.Array
    threshold: jax.Array
    b_gate: jax.Array | None
    b_up: jax.Array | None


class GatedResiduals(NamedTuple):
    """What the gradient needs: one bit per element of the gate, and what stands at the entries."""

    operands: GatedOperands
    visited: Entries
    overflow: jax.Array


def gated_dense(plan: Plan, operands: GatedOperands) -> jax.Array:
    """Returns y by dense products."""
    return _dense_rest(plan, operands, encoded(operands.x, operands.w_gate))


def _dense_rest(plan: Plan, operands: GatedOperands, product: jax.Array) -> jax.Array:
    x, _, w_up, w_out, threshold, b_gate, b_up = operands
    a = activated(plan, biased(product, b_gate), threshold)
    return projected(passed(a, biased(encoded(x, w_up), b_up)), w_out)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(plan: Plan, operands: GatedOperands, screen: Screen | None = None) -> jax.Array:
    """Returns y (B, d_out), in the accumulator's type, without b_out."""
    if not _few(operands.x.shape[0]):
        return _passed(plan, operands, screen)[0]
    if plan.layout is None:
        return few_examples(plan, operands)[0]
    return _distributed_few(plan, operands)


@compiled_once
def few_examples(plan: Plan, operands: GatedOperands) -> tuple[jax.Array, jax.Array]:
    """Decoding: rounds of units that any example opens, each a small dense product.

    Feature-major throughout, the pre-activations (h, B) and never turned around: on a CPU
    ``w @ x.T`` is the faster product of few examples.

    Returns y, and whether the units were too many, and all products dense.
    """
    x, w_gate, w_up, w_out, threshold, b_gate, b_up = operands
    examples, units = x.shape[0], w_gate.shape[0]
    most = plan.size // examples
    alone = examples == 1
    length = _ROUND_OF_ONE if alone else _ROUND

    def per_unit(of_unit):
        return None if of_unit is None else of_unit[:, None]

    z = biased(encoded(w_gate, x), per_unit(b_gate))
    words = bits.pack(jnp.any(formulas.above(z, per_unit(threshold)), axis=1))
    number = bits.count(words)
    slots = varying_like(jnp.arange(length, dtype=jnp.int32), words)
    a = activated(plan, z, per_unit(threshold))

    def more(i, y):
        # Looked up round by round: a list of all that there may be is longer than what is open.
        unit = bits.select(words, i * length + slots)
        there = unit < units
        unit = jnp.minimum(unit, units - 1)
        up = row_dots(x[0], unit, w_up, z.dtype)[:, None] if alone else encoded(take(w_up, unit), x)
        if b_up is not None:
            up = biased(up, take(b_up, unit)[:, None])
        hidden = passed(jnp.where(there[:, None], take(a, unit), 0), up).astype(w_out.dtype)
        if alone:
            hidden, unit = lax.optimization_barrier((hidden.astype(z.dtype), unit))
            return y + weighted_rows(hidden, unit[:, None], w_out)
        return y + product_of_nonzeros(hidden, take(w_out, unit), z.dtype, 0)

    def sparse(a):
        start = varying_like(jnp.zeros((examples, w_out.shape[1]), z.dtype), z)
        return repeat(ceil_div(number, length), more, start)

    def dense(a):
        up = biased(encoded(w_up, x), per_unit(b_up))
        return product_of_nonzeros(passed(a, up).astype(w_out.dtype), w_out, z.dtype, 0)

    overflow = takes_dense(plan, number, most)
    return lax.cond(overflow, dense, sparse, a), overflow


@compiled_once
def forward(
    plan: Plan, operands: GatedOperands, screen: Screen | None = None
) -> tuple[jax.Array, "GatedResiduals"]:
    """Returns y, and what the gradient needs."""
    x, w_gate, w_up, w_out, threshold, b_gate, b_up = operands
    dense = partial(_dense_rest, plan, operands)
    if screen is None:
        product = encoded(x, w_gate)
        support = support_of(plan, product, b_gate, threshold)
    else:
        # A screen brings y itself, where it is dense.
        support, product = screened_support(plan, x, w_gate, b_gate, threshold, screen, dense)
        dense = _itself
    visited = support.visited
    unit = visited.by_row.member

    def sparse(product):
        a = activated(plan, visited.z, take(threshold, unit))
        up = entry_dots(visited.by_row, visited.total, x, w_up, product.dtype)
        if b_up is not None:
            up = biased(up, take(b_up, unit))
        return gather_sum(visited.groups, unit, passed(a, up), w_out, 0)

    y = lax.cond(support.overflow, dense, sparse, product)
    return y, GatedResiduals(operands, visited, support.overflow)


def _backward(plan: Plan, residuals, g: jax.Array):
    compute = _gradients if plan.layout is None else _distributed_gradients
    return once("gated_mlp", partial(compute, plan))(residuals, g), None


def _itself(y: jax.Array) -> jax.Array:
    return y


@compiled_once
def _gradients(plan: Plan, residuals: GatedResiduals, g: jax.Array) -> GatedOperands:
    def through_dense(residuals, g):
        return jax.vjp(partial(gated_dense, plan), residuals.operands)[1](g)[0]

    sparse = partial(_sparse_gradients, plan)
    return lax.cond(residuals.overflow, through_dense, sparse, residuals, g)


def _sparse_gradients(plan: Plan, residuals: GatedResiduals, g: jax.Array) -> GatedOperands:
    x, w_gate, w_up, w_out, threshold, b_gate, b_up = residuals.operands
    groups, by_row, z_by_row, total = residuals.visited
    units = w_gate.shape[0]
    columns = groups_of(bits.transpose(groups.words, units))
    by_column = list_entries(columns, total, plan.size)
    unit, row = by_column

    z = take(z_by_row, position(groups, row, unit))
    dtype = z.dtype
    a, pullback = jax.vjp(partial(activated, plan), z, take(threshold, unit))
    up = entry_dots(by_column, total, w_up, x, dtype)
    if b_up is not None:
        up = biased(up, take(b_up, unit))
    dhidden = entry_dots(by_column, total, w_out, g, dtype)
    hidden, to_factors = jax.vjp(passed, a, up)
    da, dup = to_factors(dhidden)
    dz, dthreshold = pullback(da)

    def by_unit(values, table):
        return gather_sum(columns, row, values, table, plan.direct)

    def by_example(values, table):
        values = take(values, position(columns, by_row.member, by_row.group))
        return gather_sum(groups, by_row.member, values, table, 0)

    def per_unit(values, like):
        return None if like is None else scalar_sum(units, unit, values, total).astype(like.dtype)

    return GatedOperands(
        x=(by_example(dz, w_gate) + by_example(dup, w_up)).astype(x.dtype),
        w_gate=by_unit(dz, x).astype(w_gate.dtype),
        w_up=by_unit(dup, x).astype(w_up.dtype),
        w_out=by_unit(hidden, g).astype(w_out.dtype),
        threshold=per_unit(dthreshold, threshold),
        b_gate=per_unit(dz, b_gate),
        b_up=per_unit(dup, b_up),
    )


# on several devices

_OPERANDS = GatedOperands("bd", "md", "md", "mo", "m", "m", "m")  # type: ignore[arg-type]
_SUMS = ("bd/m", "md/b", "md/b", "mo/b", "m/b", "m/b", "m/b")
_GRADIENTS = GatedOperands(*_SUMS)  # type: ignore[arg-type]


def _passed(plan: Plan, operands: GatedOperands, screen: Screen | None = None):
    """The forward pass: y, and what the gradient needs."""
    if plan.layout is None:
        return forward(plan, operands, screen)
    return _distributed_forward(plan, operands, screen)


@compiled_once
def _distributed_few(plan: Plan, operands: GatedOperands) -> jax.Array:
    assert plan.layout is not None

    def local(share: Share, operands: GatedOperands):
        return few_examples(plan.of(share), operands)[0]

    return distributed(plan.layout, local, (operands,), (like(operands, _OPERANDS),), "bo/m")


@compiled_once
def _distributed_forward(plan: Plan, operands: GatedOperands, screen: Screen | None):
    assert plan.layout is not None

    def local(share: Share, operands: GatedOperands, screen: Screen | None):
        y, residuals = forward(plan.of(share), operands, screen)
        return y, kept(residuals.visited, share.layout)

    taken = (like(operands, _OPERANDS), dimensions_of(screen))
    y, visited = distributed(plan.layout, local, (operands, screen), taken, ("bo/m", KEPT))
    return y, (operands, visited)


@compiled_once
def _distributed_gradients(plan: Plan, residuals, g: jax.Array) -> GatedOperands:
    assert plan.layout is not None

    def local(share: Share, operands: GatedOperands, visited, g):
        own = plan.of(share)
        visited, _, overflow = restored(own, share, visited, None)
        return _gradients(own, GatedResiduals(operands, visited, overflow), g)

    operands = residuals[0]
    taken = (like(operands, _OPERANDS), KEPT, "bo")
    given = like(operands, _GRADIENTS)
    return distributed(plan.layout, local, (*residuals, g), taken, given)


gated.defvjp(once("gated_mlp", _passed, 1), _backward)
