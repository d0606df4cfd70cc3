"""Random compositions of transformations around a call, with what the float64 oracle expects.

A call is a function ``f(x, *parameters) -> y`` of rows: x has leading axes of examples, and so have
parameters that are one per element; others belong to all examples. Around it, from the inside out:
transformations that change no value (jit, vmap, scan, cond, checkpoint, shard_map, each over the
first axis where it is over one), one that differentiates, and again some that change no value,
which then have gradients of parameters to sum over examples.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxtrelu
from jaxtrelu import Rectangle

#: What may stand around a call and its derivative.
AROUND = ("jit", "vmap", "scan", "cond", "checkpoint", "checkpoint_words", "shard_map", "map")
#: Derivatives; those of blocks are reverse ones.
REVERSE = ("value", "vjp", "grad")
EVERY = (*REVERSE, "jvp", "linearize", "linear_transpose", "jvp_of_vjp", "vjp_of_jvp")
MODES = ("plain", "strict", "leaks", "no rank promotion")


@dataclasses.dataclass(frozen=True)
class Call:
    """A function of rows, its operands, and its values and gradients in float64."""

    name: str
    function: Callable
    operands: tuple[np.ndarray, ...]
    dtype: str
    #: ``(cotangent) -> (y, gradients of all operands)``, in float64.
    expected: Callable[[np.ndarray], tuple[np.ndarray, tuple]]
    #: ``(tangents) -> tangent of y``; None where there is no forward mode.
    pushed: Callable[[tuple], np.ndarray] | None
    #: How many axes of x are of examples.
    lead: int
    y_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Composition:
    """What is done to a call; printed as what it is."""

    inner: tuple[str, ...]
    derivative: str
    outer: tuple[str, ...]
    mode: str


# transformations that change no value

# A function here takes operands and returns a tuple; both have roles: "x" has all the leading axes,
# "t" has them if it has as many axes as x, and belongs to all examples otherwise.


def _has_rows(role: str, array, rank: int) -> bool:
    return role == "x" or (role == "t" and array.ndim == rank)


def around(
    kind: str, f: Callable, roles: tuple[str, ...], given: tuple[str, ...], lead: int, whole: int
):
    """`f` inside of a transformation, over the first axis where one of `lead` is left."""

    def plain(*operands):
        return f(*operands)

    if kind == "jit":
        return jax.jit(plain)
    if kind == "checkpoint":
        return jax.checkpoint(plain)
    if kind == "checkpoint_words":
        keep = jax.checkpoint_policies.save_only_these_names(jaxtrelu.RESIDUAL_NAME)
        return jax.checkpoint(plain, policy=keep)
    if kind == "cond":

        def other(*operands):
            return jax.tree.map(jnp.zeros_like, f(*operands))

        # It holds always, and the compiler cannot know.
        return lambda *operands: lax.cond(
            jnp.sum(jnp.isnan(operands[0])) >= 0, plain, other, *operands
        )
    over = {"vmap": _vmapped, "scan": _scanned, "map": _mapped, "shard_map": _sharded}[kind]

    def mapped(*operands):
        rank = operands[0].ndim
        if rank == whole - lead:
            return f(*operands)  # no axis of examples is left
        rows = operands[0].shape[0]
        if rows == 0 and kind != "vmap":
            return f(*operands)  # nothing to go over
        has = [_has_rows(role, o, rank) for role, o in zip(roles, operands, strict=True)]
        threshold = [role for role in roles if role == "t"]
        like = dict(zip(roles, has, strict=True)) if threshold else {}
        out = [True if role == "x" else role == "t" and like["t"] for role in given]
        return over(f, operands, has, out)

    return mapped if lead else plain


def _vmapped(f, operands, has, out):
    results = jax.vmap(f, in_axes=tuple(0 if h else None for h in has))(*operands)
    return _summed(results, out)


def _summed(results, out):
    """Results of rows, and sums over them where they belong to all examples."""
    pairs = zip(results, out, strict=True)
    return tuple(r if own else jnp.sum(r, 0, dtype=r.dtype) for r, own in pairs)


def _rows_and_rest(f, operands, has):
    rows = tuple(o for o, h in zip(operands, has, strict=True) if h)
    rest = tuple(o for o, h in zip(operands, has, strict=True) if not h)

    def row(rows):
        ours, others = iter(rows), iter(rest)
        return f(*(next(ours) if h else next(others) for h in has))

    return row, rows


def _scanned(f, operands, has, out):
    row, rows = _rows_and_rest(f, operands, has)
    shapes = jax.eval_shape(row, tuple(r[0] for r in rows))
    start = [jnp.zeros(s.shape, s.dtype) for s, o in zip(shapes, out, strict=True) if not o]

    def step(sums, rows):
        results = row(rows)
        added = [r for r, o in zip(results, out, strict=True) if not o]
        sums = [s + a for s, a in zip(sums, added, strict=True)]
        return sums, [r for r, o in zip(results, out, strict=True) if o]

    sums, stacked = lax.scan(step, start, rows)
    sums, stacked = iter(sums), iter(stacked)
    return tuple(next(stacked) if o else next(sums) for o in out)


def _mapped(f, operands, has, out):
    row, rows = _rows_and_rest(f, operands, has)
    results = lax.map(row, rows)
    return _summed(results, out)


def _sharded(f, operands, has, out):
    if jax.sharding.get_abstract_mesh().axis_names:
        return f(*operands)  # inside of another one
    rows = operands[0].shape[0]
    count = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    mesh = jax.make_mesh(
        (count,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    # Gradients of what all devices have are summed by the transposition itself.
    return jax.shard_map(
        f,
        mesh=mesh,
        in_specs=tuple(P("rows") if h else P() for h in has),
        out_specs=tuple(P("rows") if o else P() for o in out),
    )(*operands)


# what differentiates


def differentiated(kind: str, f: Callable, count: int):
    """The derivative as a function with roles, from a function of `count` operands.

    Returns ``(function, roles of what it takes after the operands, roles of what it gives)``, roles
    by number: that of the operand, or -1 for y.
    """
    numbers = tuple(range(count))

    def single(*operands):
        return f(*operands)[0]

    if kind == "value":
        return f, (), (-1,)
    if kind == "jvp":

        def derived(*given):
            return jax.jvp(single, given[:count], given[count:])

        return derived, numbers, (-1, -1)
    if kind == "linearize":

        def derived(*given):
            y, push = jax.linearize(single, *given[:count])
            return y, push(*given[count:])

        return derived, numbers, (-1, -1)
    if kind == "vjp":

        def derived(*given):
            y, pull = jax.vjp(single, *given[:count])
            return (y, *pull(given[count]))

        return derived, (-1,), (-1, *numbers)
    if kind == "grad":

        def derived(*given):
            def total(*operands):
                y = single(*operands)
                return jnp.sum(jnp.where(given[count] == 0, 0, y * given[count]), dtype=y.dtype)

            return jax.grad(total, numbers)(*given[:count])

        return derived, (-1,), numbers
    if kind == "linear_transpose":

        def derived(*given):
            y, push = jax.linearize(single, *given[:count])
            return (y, *jax.linear_transpose(push, *given[:count])(given[count]))

        return derived, (-1,), (-1, *numbers)
    if kind == "jvp_of_vjp":  # in the direction of the cotangent: the pullback of that

        def derived(*given):
            def pulled(cotangent):
                return jax.vjp(single, *given[:count])[1](cotangent)

            return jax.jvp(pulled, (jnp.zeros_like(given[count]),), (given[count],))[1]

        return derived, (-1,), numbers
    if kind == "vjp_of_jvp":  # of what is linear in the tangents: the pullback again

        def derived(*given):
            def pushed(*tangents):
                return jax.jvp(single, given[:count], tangents)[1]

            zeros = jax.tree.map(jnp.zeros_like, given[:count])
            return jax.vjp(pushed, *zeros)[1](given[count])

        return derived, (-1,), numbers
    raise ValueError(kind)


# one composition


def run(call: Call, composition: Composition, seed: int) -> None:
    """Computes the composition, and compares everything that it gives with the oracle."""
    operands = tuple(jnp.asarray(o) for o in call.operands)
    rng = np.random.default_rng(seed)
    roles = ("x", *("t" if call.lead and o.ndim else "w" for o in call.operands[1:]))
    if len(call.operands) != 2:
        roles = ("x", *"w" * (len(call.operands) - 1))
    f = lambda *operands: (call.function(*operands),)  # noqa: E731
    lead = call.lead
    for kind in reversed(composition.inner):
        f = around(kind, f, roles, ("x",), lead, operands[0].ndim)
    f, takes, gives = differentiated(composition.derivative, f, len(operands))

    def quarters(shape):
        return rng.integers(-4, 5, shape) / 4

    shapes = {-1: call.y_shape, **{i: o.shape for i, o in enumerate(call.operands)}}
    dtypes = {-1: call.dtype, **{i: o.dtype for i, o in enumerate(call.operands)}}
    extra = [quarters(shapes[i]) for i in takes]
    given = [jnp.asarray(e, dtypes[i]) for i, e in zip(takes, extra, strict=True)]
    role_of = {-1: "x", **dict(enumerate(roles))}
    every = (*roles, *(role_of[i] for i in takes))
    for kind in reversed(composition.outer):
        f = around(kind, f, every, tuple(role_of[i] for i in gives), lead, operands[0].ndim)
    with _mode(composition.mode):
        results = jax.jit(f)(*operands, *given)
    for result, i, expected in zip(
        results, gives, _expected(call, composition.derivative, extra), strict=True
    ):
        assert result.dtype == dtypes[i], (result.dtype, dtypes[i])
        tolerance = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 4e-2, "float16": 5e-3}
        # Sums over examples may be rounded at each, in the dtype of what is summed.
        scale = np.max(np.abs(expected), initial=1, where=np.isfinite(expected))
        close = tolerance[call.dtype]
        np.testing.assert_allclose(
            np.asarray(result, np.float64), expected, rtol=close, atol=close * scale
        )


def _expected(call: Call, derivative: str, extra: list) -> list:
    if derivative == "value":
        return [call.expected(np.zeros(call.y_shape))[0]]
    if derivative in ("jvp", "linearize"):
        assert call.pushed is not None
        return [call.expected(np.zeros(call.y_shape))[0], call.pushed(tuple(extra))]
    y, gradients = call.expected(extra[0])
    return [y, *gradients] if derivative in ("vjp", "linear_transpose") else [*gradients]


@contextlib.contextmanager
def _mode(mode: str):
    with contextlib.ExitStack() as stack:
        if mode in ("strict", "no rank promotion"):
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        if mode == "strict":
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        if mode == "leaks":
            stack.enter_context(jax.checking_leaks())
        yield


# calls

VARIANTS: dict[str, dict[str, Any]] = {
    "shift": {},
    "capped": {"ceiling": 0.75},
    "hard": {"variant": "hard"},
    "filled": {"variant": "hard", "fill": -2},
    "clamp": {"variant": "clamp"},
}
SPECIAL = (np.inf, -np.inf, np.nan, -0.0, 0.0)


@st.composite
def activations(draw) -> Call:
    """An elementwise call: any shape from 0-d to 3-d, special values, any kind of threshold."""
    dtype = draw(st.sampled_from(("float32", "float32", "bfloat16", "float16", "float64")))
    shape = draw(
        st.sampled_from(((), (0,), (1,), (7,), (33,), (2, 32), (3, 31), (1, 65), (4, 0), (0, 5),
                         (2, 3, 5), (4, 1, 33)))
    )  # fmt: skip
    kind = draw(st.sampled_from(("number", "channel", "full")))
    variant = draw(st.sampled_from(tuple(VARIANTS)))
    learned = VARIANTS[variant].get("variant") == "hard" and draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-8, 9, shape) / 4
    t_shape = {"number": (), "channel": shape[-1:], "full": shape}[kind]
    t = rng.integers(-3, 4, t_shape) / 4
    special = draw(st.booleans()) and not learned
    if special:
        x = np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), x)
        t = np.where(rng.random(t_shape) < 0.2, rng.choice(SPECIAL, t_shape), t)
    options = dict(VARIANTS[variant])
    given = dict(options)
    density = None
    if learned:
        # In eighths, so that no quarter lies on an edge of the window.
        width = draw(st.sampled_from((0.625, 2.125)))
        given["surrogate"] = Rectangle(width)
        density = lambda u: (np.abs(u) < width / 2) / width  # noqa: E731
    wide = "float64" if dtype == "float64" else "float32"

    def expected(cotangent):
        y = oracle.value(x, t, **options)
        return y, oracle.cotangents(x, t, cotangent, **options, density=density)

    def pushed(tangents):
        tx, tt = (np.broadcast_to(o, shape) for o in tangents)
        whole = np.broadcast_to(np.asarray(t), shape)
        sx, st_ = oracle.cotangents(x, whole, np.ones(shape), **options, density=density)
        return sx * tx + st_ * tt

    return Call(
        f"thresholded_relu, {variant}, {dtype}, {kind}{', learned' * learned}",
        functools.partial(jaxtrelu.thresholded_relu, **given),
        (x.astype(_numpy(dtype)), np.asarray(t, wide)),
        dtype,
        expected,
        pushed,
        len(shape),
        shape,
    )


def _numpy(dtype: str):
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


@st.composite
def blocks(draw) -> Call:
    """A product with a thresholded activation: reverse mode, examples around multiples of 8."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    name = draw(st.sampled_from(("thresholded_linear", "sparse_mlp", "compact_mlp", "gated_mlp")))
    rows = draw(st.sampled_from((1, 2, 8, 9, 33)))
    width, features = draw(st.sampled_from(((1, 1), (4, 31), (3, 33), (8, 70), (5, 64))))
    variant = draw(st.sampled_from(("shift", "capped", "hard")))
    learned = variant == "hard" and draw(st.booleans())
    options, given, density = dict(VARIANTS[variant]), dict(VARIANTS[variant]), None
    if learned:
        given["surrogate"] = Rectangle(1.0625)
        density = lambda u: (np.abs(u) < 0.53125) / 1.0625  # noqa: E731
    if name != "thresholded_linear":
        given["capacity"] = draw(st.sampled_from((None, 1, 5)))

    def quarters(*shape):
        return rng.integers(-4, 5, shape) / 4

    x, w_in, w_out = quarters(rows, width), quarters(features, width), quarters(features, 3)
    t = rng.integers(-4, 9, features) / 4

    if name == "thresholded_linear":
        operands = (x, w_in.T, t)

        def expected(ct):
            z = x @ w_in.T
            dz, dt = oracle.cotangents(z, t, ct, **options, density=density)
            return oracle.value(z, t, **options), (dz @ w_in, x.T @ dz, dt)

        shape = (rows, features)
    elif name == "gated_mlp":
        w_up = quarters(features, width)
        operands = (x, w_in, w_up, w_out, t)

        def expected(ct):
            z, up = x @ w_in.T, x @ w_up.T
            a, dh = oracle.value(z, t, **options), ct @ w_out.T
            dz, dt = oracle.cotangents(z, t, dh * up, **options, density=density)
            dup = dh * a
            dx = dz @ w_in + dup @ w_up
            return (a * up) @ w_out, (dx, dz.T @ x, dup.T @ x, (a * up).T @ ct, dt)

        shape = (rows, 3)
    else:
        operands = (x, w_in, w_out, t)

        def expected(ct):
            z = x @ w_in.T
            a = oracle.value(z, t, **options)
            dz, dt = oracle.cotangents(z, t, ct @ w_out.T, **options, density=density)
            return a @ w_out, (dz @ w_in, dz.T @ x, a.T @ ct, dt)

        shape = (rows, 3)
    return Call(
        f"{name}, {variant}{', learned' * learned}",
        functools.partial(getattr(jaxtrelu, name), **given),
        tuple(np.asarray(o, np.float32) for o in operands),
        "float32",
        expected,
        None,
        1,
        shape,
    )


def compositions(derivatives: tuple[str, ...], depth: int = 4) -> st.SearchStrategy[Composition]:
    """Compositions of up to `depth` transformations around a derivative and inside of it."""
    some = st.lists(st.sampled_from(AROUND), max_size=depth)
    return st.builds(
        lambda kinds, cut, derivative, mode: Composition(
            tuple(kinds[:cut]), derivative, tuple(kinds[cut:]), mode
        ),
        some,
        st.integers(0, depth),
        st.sampled_from(derivatives),
        st.sampled_from(MODES),
    )
