"""The two-layer product around a thresholded activation, in which only the first one is dense.

With z = x @ w_in.T + b_in and the open entries E, the rest visits E only:

    y[b] = sum over (b, f) in E of act(z)[b, f] w_out[f]
    da[b, f] = g[b] . w_out[f]        dz, dθ = pullback of act at (z, θ)[b, f]
    dw_out[f] = sum over b of act(z)[b, f] g[b]        dw_in[f] = sum over b of dz[b, f] x[b]
    dx[b] = sum over f of dz[b, f] w_in[f]

For a threshold that learns, E is what is open or inside the surrogate's window. Closed entries of
the window have act = dz = 0 unless the estimate flows to z as well; they are listed apart then, and
dθ alone is computed there.

Kept for the gradient: the operands, one bit per element of z (two with a window), and z at the
entries.
"""

from functools import partial
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxtrelu import bits
from jaxtrelu._primitive import formulas
from jaxtrelu._primitive.partition import Share, distributed, from_list, layout_of, like, to_list
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
from jaxtrelu.sparse._activity import Activity
from jaxtrelu.sparse._block import (
    CROSSOVER,
    Operands,
    Plan,
    Products,
    activated,
    biased,
    checked_products,
    compiled_once,
    decoded,
    dense_forward,
    encoded,
    finished,
    gates,
    planned,
)
from jaxtrelu.sparse._entries import (
    KEPT,
    Entries,
    Groups,
    entries_of,
    groups_of,
    has_bit,
    kept,
    list_entries,
    position,
    restored,
    support_of,
)
from jaxtrelu.sparse._gathers import by_gathers
from jaxtrelu.sparse._loops import take
from jaxtrelu.sparse._screen import (
    Precision,
    Screen,
    checked_screen,
    dimensions_of,
    screened_support,
)
from jaxtrelu.sparse._sums import entry_dots, gather_sum, scalar_sum


def sparse_mlp(
    x: Float[ArrayLike, "*batch d"],
    w_in: Float[ArrayLike, "m d"],
    w_out: Float[ArrayLike, "m d_out"],
    threshold: Float[ArrayLike, "..."] = 1.0,
    *,
    b_in: Float[ArrayLike, " m"] | None = None,
    b_out: Float[ArrayLike, " d_out"] | None = None,
    variant: VariantName = "shift",
    ceiling: float | None = None,
    fill: float = 0,
    surrogate: Surrogate | None = None,
    implementation: ImplementationName | None = None,
    capacity: int | None = None,
    with_activity: bool = False,
    products: Products | None = None,
    screen: Screen | Precision | bool | None = None,
) -> Float[Array, "*batch d_out"] | tuple[Float[Array, "*batch d_out"], Activity]:
    """``act(x @ w_in.T + b_in) @ w_out + b_out``, in which only the first product is dense.

    The second product, the latent's gradient and both weight gradients visit open entries only (for
    a threshold that learns: open or inside the surrogate's window). The result is that of the dense
    function to rounding, always: where more entries are open than `capacity` allows for, dense
    products are taken, chosen on the device.

    Convention at the threshold: open where ``x @ w_in.T + b_in > threshold``, strictly; NaN is
    open. Pre-activations are summed and compared in float32 at least. A closed entry contributes
    nothing, also beside a weight or a cotangent that is NaN or infinite: a factor that is exactly 0
    is skipped on every path, forward and backward. (Inside a surrogate's window the estimate of a
    closed entry's gradient is made of its weights in `w_out`; a NaN among them reaches the
    threshold's gradient and, with ``to_input`` or ``shift``, that of its pre-activation.)

    Args:
      x: (..., d), floating point.
      w_in: (m, d), feature-major.
      w_out: (m, d_out), feature-major.
      threshold: a number or (m,), in the units of the pre-activations.
      b_in: (m,), or None.
      b_out: (d_out,), or None.
      variant: ``"shift"`` or ``"hard"``.
      ceiling: for ``shift``, as in `jaxtrelu.thresholded_relu`.
      fill: 0: closed entries contribute nothing.
      surrogate: of bounded support, such as ``jaxtrelu.Rectangle(0.05)``; with ``hard`` that is
        JumpReLU.
      implementation: None or ``"xla"``; the kernels have none for this product.
      capacity: the mean number of entries per row up to which the sparse path is taken; a hint, not
        a limit. Single rows may hold any number. Default: m / 32 (at least 32), about where dense
        becomes faster on a CPU. Lists of ``capacity`` entries per row are part of the record, so a
        smaller number that still suffices saves memory.
      with_activity: whether to return the record of what was open as well.
      products: how what follows the first product is computed. ``"loops"``: over lists, each as
        long as it needs to be, made for the CPU. ``"gathers"``: `capacity` slots for every row
        (dense where a row needs more) and no loop, made for accelerators, not measured there.
        ``"dense"``. Default: loops on the CPU and dense elsewhere, chosen at lowering.
      screen: whether to prove entries closed from rounded operands first, and compute only what is
        left of the first product. True is ``"int8"``; ``"bfloat16"`` is the other precision; for
        weights that do not change, a `jaxtrelu.sparse.Screen` made once by
        `jaxtrelu.sparse.prepare_screen`. Gates, values and gradients are those without, up to the
        rounding of float32 sums. Default: no, since it pays on some processors only
        (docs/screening.md).

    Returns:
      y of shape (..., d_out) in x's dtype, summed in float32 at least; with `with_activity`
      ``(y, activity)``, with the `Activity` on which penalties can be built.

    Raises:
      TypeError: an operand is not a floating-point array.
      ValueError: shapes that do not fit, a variant or a fill that leaves no zeros, or a surrogate
        of unbounded support.
      NotImplementedError: the implementation asked for cannot compute this call.

    Example:
      >>> import jax, jax.numpy as jnp, jaxtrelu
      >>> key = jax.random.key(0)
      >>> x, w = jax.random.normal(key, (4, 8)), jax.random.normal(key, (64, 8))
      >>> y, activity = jaxtrelu.sparse_mlp(x, w, w, 5.0, with_activity=True)
      >>> dense = jaxtrelu.thresholded_relu(x @ w.T, 5.0) @ w
      >>> bool(jnp.allclose(y, dense, atol=1e-4)), activity.l0.shape
      (True, (4,))

    Source: exact sparse product for JumpReLU (arXiv 2407.14435) and for thresholded feed-forward
    layers (arXiv 2310.04564).
    """
    spec = checked_spec(variant, ceiling, fill, surrogate, implementation)
    products = checked_products(products, get_args(Products), "sparse_mlp")
    arrays = (x, w_in, w_out, threshold, b_in, b_out)
    distributed = products != "gathers"
    plan, block = checked_call(spec, capacity, products, *arrays, distributed=distributed)
    operands = operands_of(block)
    screen = checked_screen(screen, operands.w_in)
    if screen is not None and products == "gathers":
        raise NotImplementedError(
            "`screen` proves entries closed for lists, and products='gathers' has none. "
            "Drop one of the two."
        )
    if not has_elements(operands):
        y, activity = without_elements(plan, operands)
    elif products == "gathers":
        y, activity = by_gathers(plan, operands)
    else:
        y, activity = fused(plan, operands, screen)
    y = finished(y, block.b_out, block.lead, block.x.dtype)
    return (y, in_shape(plan, activity, block.lead)) if with_activity else y


def checked_call(
    spec: Spec, capacity, products, x, w_in, w_out, threshold, b_in, b_out, *, distributed=True
) -> tuple[Plan, Block]:
    """The static part of a call and its operands, both checked."""
    check_skips(spec, "sparse_mlp")
    block = block_operands(x, {"w_in": w_in}, w_out, threshold, {"b_in": b_in}, b_out)
    shape = block.x.shape[0], block.w_out.shape[0]
    layout = layout_of(block.x, block.w_out) if distributed else None
    return planned(spec, capacity, CROSSOVER, shape, layout, products), block


def operands_of(block: Block) -> Operands:
    """The operands of the fused function, which vary over the same axes of a `shard_map`."""
    (w_in,), (b_in,) = block.w_in, block.b_in
    operands = Operands(block.x, w_in, b_in, block.threshold, block.w_out)
    leaves = jax.tree.leaves(operands)
    return jax.tree.map(lambda leaf: varying_like(leaf, *leaves), operands)


def has_elements(operands: Operands) -> bool:
    """Whether no operand is empty: lists of nothing have no shape that loops could work on."""
    return all(o.size for o in (operands.x, operands.w_in, operands.w_out))


def in_shape(plan: Plan, activity: Activity, lead: tuple) -> Activity:
    """The record with the leading axes of x."""
    if (layout := plan.layout) is not None:
        # What overflows on one device is missing: then nobody may take the lists for complete.
        features, rows, values, *_, overflow = activity
        activity = activity._replace(
            features=jnp.where(overflow, layout.features, features),
            rows=jnp.where(overflow, layout.examples, rows),
            values=jnp.where(overflow, 0, values),
        )
    return activity._replace(counts=activity.counts.reshape(lead), l0=activity.l0.reshape(lead))


# the fused function and its gradient


class Residuals(NamedTuple):
    """What the gradient needs: one bit per element, and what stands at the entries."""

    operands: Operands
    visited: Entries
    window: Entries | None
    overflow: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused(
    plan: Plan, operands: Operands, screen: Screen | None = None
) -> tuple[jax.Array, Activity]:
    """Returns y (B, d_out) in the accumulator's type, without b_out, and the record of activity."""
    return _passed(plan, operands, screen)[0]


def _passed(plan: Plan, operands: Operands, screen: Screen | None = None):
    """The forward pass: what `fused` returns, and what the gradient needs."""
    if plan.layout is None:
        return forward(plan, operands, screen)
    return _distributed_forward(plan, operands, screen)


@compiled_once
def forward(plan: Plan, operands: Operands, screen: Screen | None = None):
    """Returns what `fused` does, and what the gradient needs."""
    x, w_in, b_in, threshold, w_out = operands
    (examples, _), (features, _) = x.shape, w_in.shape
    apart = plan.window_is_silent

    def through_dense(product):
        # The bias is added here again, so that the sum need not be kept as an operand.
        return decoded(plan, biased(product, b_in), threshold, w_out)

    if screen is None:
        product = encoded(x, w_in)
        support = support_of(plan, product, b_in, threshold, apart=apart)
    else:
        support, product = screened_support(
            plan, x, w_in, b_in, threshold, screen, through_dense, apart=apart
        )
    visited, overflow = support.visited, support.overflow

    def activations(entries):
        a = activated(plan, entries.z, take(threshold, entries.by_row.member))
        return jnp.where(entries.used, a, 0)

    values = activations(visited)

    def sparse(_):
        return gather_sum(visited.groups, visited.by_row.member, values, w_out, 0)

    # A screen has brought y itself, where it is dense.
    rest = through_dense if screen is None else (lambda y: y)
    y = lax.cond(overflow, rest, sparse, product)

    def at_visited(row, feature):
        # A window that is listed apart holds closed entries, whose activations are 0.
        at = jnp.minimum(position(visited.groups, row, feature), plan.size - 1)
        return jnp.where(has_bit(support.opened, row, feature), take(values, at), 0)

    every, counts = visited, visited.groups.counts
    if support.window is not None:
        # One list of all entries, in row order: dropped by the compiler where nobody reads it.
        all_words = groups_of(support.opened | support.window.groups.words)
        every, counts = entries_of(plan, all_words, overflow, at_visited), all_words.counts
        values = jnp.where(every.used, every.z, 0)
    activity = Activity(
        features=jnp.where(every.used, every.by_row.member, features),
        rows=jnp.where(every.used, every.by_row.group, examples),
        values=values,
        counts=counts,
        l0=bits.count(support.opened).astype(values.dtype),
        fired=bits.count(bits.transpose(support.opened, features)),
        overflow=overflow,
    )
    return (y, activity), Residuals(operands, visited, support.window, overflow)


def _backward(plan: Plan, residuals, cotangents):
    g, activity = cotangents
    compute = _gradients if plan.layout is None else _distributed_gradients
    gradients = once("sparse_mlp", partial(compute, plan))
    return gradients(residuals, (g, activity.values, activity.l0)), None


@compiled_once
def _gradients(plan: Plan, residuals: Residuals, given) -> Operands:
    """The gradients for cotangents of y, of the entries' values and of l0."""
    dense, sparse = partial(dense_gradients, plan), partial(_sparse_gradients, plan)
    return lax.cond(residuals.overflow, dense, sparse, residuals, given)


def dense_gradients(plan: Plan, residuals: Residuals, given) -> Operands:
    """The gradients by dense product, for cotangents of y, of the entries' values and of l0."""
    g, _, l0 = given
    return jax.vjp(partial(dense_forward, plan), residuals.operands)[1]((g, l0))[0]


class AtEntries(NamedTuple):
    """Gradients before weights' are summed, in a list by feature."""

    columns: Groups
    feature: jax.Array
    row: jax.Array
    a: jax.Array
    """The activations."""
    dz: jax.Array
    threshold: jax.Array
    """The gradient of the threshold, (m,), summed already."""
    x: jax.Array
    """The gradient of x, (B, d), summed already."""


def at_entries(plan: Plan, residuals: Residuals, given) -> AtEntries:
    """The gradients at the entries, for cotangents of y, of the entries' values and of l0."""
    g, values, l0 = given
    x, w_in, _, threshold, w_out = residuals.operands
    groups, by_row, z_by_row, total = residuals.visited
    window, features = residuals.window, w_in.shape[0]
    columns = groups_of(bits.transpose(groups.words, features))
    by_column = list_entries(columns, total, plan.size)
    feature, row = by_column
    dtype = z_by_row.dtype

    def pulled_back(z, row, feature, dots):
        """The activations, dz and dθ at some entries."""
        # In the record of activity an entry stands after those of both lists that come before it.
        place = position(groups, row, feature)
        if window is not None:
            place = place + position(window.groups, row, feature)

        def both(z, threshold):
            return activated(plan, z, threshold), gates(plan, z, threshold)

        (a, _), pullback = jax.vjp(both, z, take(threshold, feature))
        return a, *pullback((dots + take(values, place), take(l0, row)))

    z = take(z_by_row, position(groups, row, feature))
    dots = entry_dots(by_column, total, w_out, g, dtype)
    a, dz, at_threshold = pulled_back(z, row, feature, dots)
    dthreshold = scalar_sum(features, feature, at_threshold, total)
    if window is not None:
        dots = entry_dots(window.by_row, window.total, g, w_out, dtype)
        _, _, at_threshold = pulled_back(window.z, *window.by_row, dots)
        inside = window.by_row.member
        dthreshold = dthreshold + scalar_sum(features, inside, at_threshold, window.total)

    dz_by_row = take(dz, position(columns, by_row.member, by_row.group))
    dx = gather_sum(groups, by_row.member, dz_by_row, w_in, 0).astype(x.dtype)
    return AtEntries(columns, feature, row, a, dz, dthreshold.astype(threshold.dtype), dx)


def summed(plan: Plan, operands: Operands, found: AtEntries, g, features: Groups) -> Operands:
    """The gradients summed by feature, for all features or for some of `found.columns`."""
    x, w_in, b_in, _, w_out = operands

    def by_feature(values, table):
        return gather_sum(features, found.row, values, table, plan.direct)

    def bias():
        number, total = w_in.shape[0], found.columns.total
        return scalar_sum(number, found.feature, found.dz, total)

    return Operands(
        x=found.x,
        w_in=by_feature(found.dz, x).astype(w_in.dtype),
        b_in=None if b_in is None else bias().astype(b_in.dtype),
        threshold=found.threshold,
        w_out=by_feature(found.a, g).astype(w_out.dtype),
    )


def _sparse_gradients(plan: Plan, residuals: Residuals, given) -> Operands:
    found = at_entries(plan, residuals, given)
    return summed(plan, residuals.operands, found, given[0], found.columns)


def without_elements(plan: Plan, operands: Operands) -> tuple[jax.Array, Activity]:
    """The same as `fused` for operands without an element: by dense product, and with no list."""
    y, l0 = dense_forward(plan, operands)
    features = operands.w_in.shape[0]
    z = biased(encoded(operands.x, operands.w_in), operands.b_in)
    threshold = operands.threshold[None]
    opened = visited = formulas.above(z, threshold)
    if plan.spec.surrogate is not None:
        visited = opened | formulas.window(z, threshold, plan.spec)
    record = Activity(
        features=jnp.full(plan.size, features, jnp.int32),
        rows=jnp.full(plan.size, l0.shape[0], jnp.int32),
        values=jnp.zeros(plan.size, y.dtype),
        counts=jnp.sum(visited, axis=-1, dtype=jnp.int32),
        l0=l0,
        fired=jnp.sum(opened, axis=0, dtype=jnp.int32),
        overflow=jnp.any(visited),
    )
    return y, record


# on several devices

OPERANDS = Operands("bd", "md", "m", "m", "mo")  # type: ignore[arg-type]
GRADIENTS = Operands("bd/m", "md/b", "m/b", "m/b", "mo/b")  # type: ignore[arg-type]
_ACTIVITY = Activity("", "", "", "b/m", "b/m", "m/b", "/bm")  # type: ignore[arg-type]


@compiled_once
def _distributed_forward(plan: Plan, operands: Operands, screen: Screen | None):
    layout = plan.layout
    assert layout is not None

    def local(share: Share, operands: Operands, screen: Screen | None):
        (y, found), residuals = forward(plan.of(share), operands, screen)
        used = found.rows < share.layout.examples
        record = found._replace(
            features=jnp.where(used, found.features + share.first_feature, layout.features),
            rows=jnp.where(used, found.rows + share.first_example, layout.examples),
            overflow=found.overflow.astype(jnp.int32),
        )
        lists = {name: to_list(getattr(record, name), share.layout) for name in _LISTS}
        entries = (residuals.visited, residuals.window)
        return y, record._replace(**lists), *(e and kept(e, share.layout) for e in entries)

    window = KEPT if plan.window_is_silent else None
    activity = _ACTIVITY._replace(**dict.fromkeys(_LISTS, layout.list))  # type: ignore[arg-type]
    y, record, *entries = distributed(
        layout,
        local,
        (operands, screen),
        (like(operands, OPERANDS), dimensions_of(screen)),
        ("bo/m", activity, KEPT, window),
    )
    lists = {name: from_list(getattr(record, name)) for name in _LISTS}
    record = record._replace(**lists, overflow=record.overflow > 0)
    return (y, record), (operands, *entries)


_LISTS = ("features", "rows", "values")


@compiled_once
def _distributed_gradients(plan: Plan, residuals, given) -> Operands:
    operands, visited, window = residuals
    layout = plan.layout
    assert layout is not None

    def local(share: Share, operands: Operands, visited, window, given):
        own, (g, values, l0) = plan.of(share), given
        residuals = Residuals(operands, *restored(own, share, visited, window))
        return _gradients(own, residuals, (g, from_list(values), l0))

    g, values, l0 = given
    return distributed(
        layout,
        local,
        (operands, visited, window, (g, to_list(values, layout), l0)),
        (like(operands, OPERANDS), KEPT, window and KEPT, ("bo", layout.list, "b")),
        like(operands, GRADIENTS),
    )


fused.defvjp(once("sparse_mlp", _passed, 1), _backward)
