"""Screening: the certificate against exact sums, and screened products against unscreened ones."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import examples, quick
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, PartitionSpec
from sparse_cases import CAPACITY, CASES, SIDES, assert_close, cotangent, gated_operands, operands

from jaxtrelu import Rectangle, gated_mlp, sparse_mlp, sparse_mlp_vjp
from jaxtrelu._primitive.spec import Spec
from jaxtrelu.sparse import Screen, entry_sum, prepare_screen
from jaxtrelu.sparse._block import Plan
from jaxtrelu.sparse._screen import limits, proved_closed

PRECISIONS = ("int8", "bfloat16")
WIDTH, ROWS = 24, 6


# the certificate


@partial(jax.jit, static_argnums=(0, 5))
def proved(precision, x, w, threshold, bias, half_width=None, tighten=1.0):
    """Where the certificate says closed, of a bound that may be made smaller."""
    surrogate = None if half_width is None else Rectangle(2 * half_width)
    plan = Plan(Spec("hard", surrogate=surrogate), 1)
    screen = prepare_screen(w, precision)
    screen = screen._replace(lost=tighten * screen.lost, norm=tighten * screen.norm)
    return proved_closed(x, screen, limits(plan, threshold, bias))


def exact_sums(x, w, bias):
    """Pre-activations (rows, features), the float64 next to the exact sum: products are exact."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return np.array([[math.fsum([*(a * b), c]) for b, c in zip(w, bias, strict=True)] for a in x])


def kinds(rng, rows, kind):
    """Rows on which roundings do their worst, (rows, WIDTH) float32."""
    plain = rng.normal(size=(rows, WIDTH))
    if kind == "huge element":
        plain[:, 3] = 1e6 * rng.choice([-1, 1], rows)
    elif kind == "equal elements":
        plain = np.ones_like(plain) * rng.uniform(0.1, 3, (rows, 1))
    elif kind == "halves":  # all elements but one are rounded by nearly as much as can be
        plain = 0.49 + 0 * plain
        plain[:, 0] = 127
    elif kind == "cancelling":
        plain[:, WIDTH // 2 :] = -plain[:, : WIDTH // 2] * (1 + 1e-7 * rng.normal())
    elif kind == "subnormal":
        plain = plain * 2.0**-130
    elif kind == "tiny":
        plain = plain * 2.0**-90
    elif kind == "large":
        plain = plain * 2.0**45
    elif kind == "zeros":
        plain = plain * (rng.random(plain.shape) < 0.1)
    elif kind == "mixed scales":
        plain = plain * 2.0 ** rng.integers(-30, 30, plain.shape)
    return plain.astype(np.float32)


KINDS = (
    "plain", "huge element", "equal elements", "halves", "cancelling", "subnormal", "tiny", "large",
    "zeros", "mixed scales",
)  # fmt: skip


@examples(60)
@given(
    st.sampled_from(PRECISIONS),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.integers(0, 2**31),
    st.sampled_from([None, 0.25]),
    st.sampled_from([-1, 0, 1]),
)
def test_what_is_proved_closed_is_closed(precision, x_kind, w_kind, seed, half_width, side):
    """Thresholds lie within a rounding of a pre-activation of their feature, on either side."""
    rng = np.random.default_rng(seed)
    x, w = kinds(rng, ROWS, x_kind), kinds(rng, ROWS, w_kind)
    bias = (rng.normal(size=ROWS) * rng.integers(0, 2)).astype(np.float32)
    sums = exact_sums(x, w, bias)
    reach = half_width or 0
    theta = (np.diagonal(sums) + reach).astype(np.float32)
    theta = np.nextafter(theta, np.float32(side * np.inf)) if side else theta
    closed = np.asarray(proved(precision, x, w, theta, bias, half_width))
    # Compared in float64, to which the threshold and half the window convert exactly.
    assert not (closed & (sums > theta.astype(np.float64) - reach)).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_most_entries_are_proved(precision):
    """At three standard deviations of random operands, what is left is a small part."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 64, 512)).astype(np.float32)
    theta = np.full(64, 3 * 512**0.5, np.float32)
    closed = np.asarray(proved(precision, x, w, theta, 0 * theta))
    is_open = exact_sums(x, w, 0 * theta) > theta
    assert is_open.any() and not (closed & is_open).any()
    assert (~closed).mean() < 0.03


def hardest(precision):
    """x and w whose error is nearly the bound: w's losses are all of one sign and x is constant."""
    x = np.ones((1, 256), np.float32)
    w = np.full((1, 256), 0.499, np.float32)
    w[0, 0] = 127
    if precision == "bfloat16":
        w = np.full((1, 256), 1 + 0.499 * 2**-7, np.float32)
    return x, w


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tighten", [1.0, 0.9])
def test_a_bound_too_small_by_a_tenth_would_be_found(precision, tighten):
    """The control: with nine tenths of the bound an open entry is "proved" closed."""
    x, w = hardest(precision)
    bias = np.zeros(1, np.float32)
    sums = exact_sums(x, w, bias)
    theta = np.nextafter(sums[0].astype(np.float32), np.float32(-np.inf))
    theta = theta if theta < sums[0] else np.nextafter(theta, np.float32(-np.inf))
    assert (sums > theta).all()
    closed = bool(proved(precision, x, w, theta, bias, None, tighten)[0, 0])
    assert closed == (tighten < 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_nothing_is_proved_of_what_is_not_finite_or_overflows(precision, value):
    x, w = np.ones((2, 3, WIDTH), np.float32)
    theta, bias = np.full(3, 1e30, np.float32), np.zeros(3, np.float32)
    assert np.asarray(proved(precision, x, w, theta, bias)).all()

    def without(array):
        changed = np.array(array)
        changed.reshape(3, -1)[1, 0] = value
        return changed

    row = np.array([[True] * 3, [False] * 3, [True] * 3])
    np.testing.assert_array_equal(proved(precision, without(x), w, theta, bias), row)
    np.testing.assert_array_equal(proved(precision, x, without(w), theta, bias), row.T)
    if not abs(value) < np.inf:
        np.testing.assert_array_equal(proved(precision, x, w, without(theta), bias), row.T)
        np.testing.assert_array_equal(proved(precision, x, w, theta, without(bias)), row.T)


# the products


@partial(jax.jit, static_argnums=(0, 1))
def outcome(case, precision, args, screen=None):
    """y, l0, a penalty and all gradients, with the record; of no precision and screen: unscreened.

    The unscreened outcome of a case is one program for all that is compared with it.
    """

    def outputs(*args):
        y, activity = sparse_mlp(
            *args[:4], b_in=args[4], b_out=args[5], **CASES[case], capacity=CAPACITY,
            with_activity=True, screen=precision if screen is None else screen,
        )  # fmt: skip
        penalty = entry_sum(jnp.tanh, activity, lambda: jnp.zeros((20, 64)))
        return (y, activity.l0, penalty), activity

    values, pullback, activity = jax.vjp(outputs, *args, has_aux=True)
    y, l0, penalty = values
    given = (
        cotangent(*y.shape).astype(y.dtype),
        jnp.sin(jnp.arange(l0.size, dtype=l0.dtype)),
        1 + 0 * penalty,
    )
    return values, pullback(given), activity


def assert_as_without(case, precision, args, screen=None):
    plain = outcome(case, None, args)
    screened = outcome(case, None if screen else precision, args, screen)
    for name in ("features", "rows", "counts", "l0", "fired", "overflow"):
        np.testing.assert_array_equal(
            getattr(screened[2], name), getattr(plain[2], name), err_msg=name
        )
    assert_close(jax.tree.leaves(screened[:2]), jax.tree.leaves(plain[:2]))
    assert_close([screened[2].values], [plain[2].values])
    return screened[2]


WAYS = [(*way, case) for way in (("sparse", "int8"), ("dense", "bfloat16")) for case in CASES]
QUICK_WAYS = {("sparse", "int8", "shift"), ("dense", "bfloat16", "jump")}


@pytest.mark.parametrize(("side", "precision", "case"), quick(WAYS, QUICK_WAYS))
def test_gates_values_and_gradients_are_those_without(side, precision, case):
    activity = assert_as_without(case, precision, operands(SIDES[side]))
    assert bool(activity.overflow) == (side == "dense")


@pytest.mark.parametrize(("case", "precision"), [("shift", "int8"), ("jump", "bfloat16")])
@pytest.mark.parametrize("threshold", [-9.0, 1.0, 9.0])
def test_more_candidates_than_lists_hold_and_none(case, precision, threshold):
    activity = assert_as_without(case, precision, operands(threshold))
    assert bool(activity.overflow) == (threshold == -9.0)
    assert bool(activity.l0.any()) == (threshold != 9.0)


def test_candidates_that_overflow_where_entries_do_not():
    """Zero rows at a threshold of 0 are closed, and cannot be proved to be."""
    args = operands(0.0)
    args = [jnp.zeros_like(args[0]), *args[1:3], 0 * args[3], 0 * args[4], args[5]]
    activity = assert_as_without("shift", "int8", args)
    assert not activity.overflow and activity.l0.sum() == 0


@pytest.mark.parametrize("precision", quick(PRECISIONS, {"int8"}))
def test_a_prepared_screen_goes_through_jit_and_comes_from_a_file(tmp_path, precision):
    args = operands(1.7)
    screen = prepare_screen(args[1], precision)
    np.savez(tmp_path / "screen.npz", **{
        name: np.asarray(leaf.astype(jnp.float32) if precision == "bfloat16" else leaf)
        for name, leaf in screen._asdict().items() if leaf is not None
    })  # fmt: skip
    found = np.load(tmp_path / "screen.npz")
    loaded = Screen(*(
        None if leaf is None else jnp.asarray(found[name], leaf.dtype)
        for name, leaf in screen._asdict().items()
    ))  # fmt: skip
    assert_as_without("jump", precision, args, screen=loaded)


@pytest.mark.parametrize("dtype", quick(["bfloat16", "float16"], {"bfloat16"}))
def test_narrow_operands(dtype):
    args = [a.astype(dtype) for a in operands(1.7)]
    assert_as_without("hard", "int8", args)


@jax.jit
def with_and_without(args):
    return tuple(
        sparse_mlp(*args[:4], b_in=args[4], with_activity=True, capacity=64, screen=screen)
        for screen in (None, True)
    )


@pytest.mark.parametrize("where", range(4), ids=("x", "w_in", "b_in", "threshold"))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_operands_open_what_they_open_without(where, value):
    args = operands(1.7)
    at = (0, 1, 4, 3)[where]
    args[at] = args[at].at[(5,) if args[at].ndim == 1 else (5, 2)].set(value)
    plain, screened = with_and_without(args)
    np.testing.assert_array_equal(screened[1].features, plain[1].features)
    np.testing.assert_allclose(screened[0], plain[0], rtol=1e-4, atol=1e-4)


def test_vmap():
    args = operands(1.7)
    stacked = jnp.stack([args[0], args[0][::-1] * 0.9])

    def gradient(screen, x):
        def total(x, w_in):
            y = sparse_mlp(x, w_in, *args[2:4], b_in=args[4], capacity=CAPACITY, screen=screen)
            return jnp.sum(jnp.sin(y))

        return jax.grad(total, (0, 1))(x, args[1])

    screened, plain = jax.jit(
        lambda x: [jax.vmap(partial(gradient, screen))(x) for screen in ("int8", None)]
    )(stacked)
    assert_close(screened, plain)


@pytest.mark.slow  # `test_vmap` takes screens of each step, and prepared ones go through jit below
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vmap_of_prepared_screens(precision):
    """Over rows with one screen, and over several weights, each with its own."""
    args = operands(1.7)
    x = jnp.stack([args[0], args[0][::-1] * 0.9])
    w_in = jnp.stack([args[1], args[1][::-1] * 1.1])
    prepare = partial(prepare_screen, precision=precision)

    def product(x, w_in, screen):
        return sparse_mlp(x, w_in, *args[2:4], b_in=args[4], capacity=CAPACITY, screen=screen)

    def gradient(x, w_in, screen):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(product(*a, screen))), (0, 1))(x, w_in)

    for axes, weights in (((0, None), args[1]), ((0, 0), w_in)):
        screens = jax.vmap(prepare)(weights) if axes[1] == 0 else prepare(weights)

        @jax.jit
        def outcomes(x, weights, screens, axes=axes):
            plain = [jax.vmap(partial(f, screen=None), axes) for f in (product, gradient)]
            screened = [jax.vmap(f, (*axes, axes[1])) for f in (product, gradient)]
            return [f(x, weights) for f in plain], [f(x, weights, screens) for f in screened]

        for one, other in zip(*outcomes(x, weights, screens), strict=True):
            assert_close(other, one)


@pytest.mark.parametrize("prepared", quick([False, True], {True}))
def test_shard_map_over_the_batch(prepared):
    args = operands(1.7)
    mesh = Mesh(np.array(jax.devices()[:2]), ("b",), axis_types=(AxisType.Auto,))
    given = prepare_screen(args[1]) if prepared else None

    def gradient(screen, x, w_in, given):
        def total(w_in):
            s = given if screen == "given" else screen
            y = sparse_mlp(x, w_in, *args[2:4], b_in=args[4], capacity=CAPACITY, screen=s)
            return jnp.sum(jnp.sin(y))

        return jax.grad(total)(w_in)

    split = PartitionSpec("b")
    sharded = jax.jit(jax.shard_map(
        partial(gradient, "given" if prepared else True),
        mesh=mesh, in_specs=(split, PartitionSpec(), PartitionSpec()), out_specs=PartitionSpec(),
    ))  # fmt: skip
    plain = jax.jit(partial(gradient, None))
    assert_close([sharded(args[0], args[1], given)], [plain(args[0], args[1], None)])


@pytest.mark.parametrize("side", SIDES)
def test_gated_batches(side):
    plain, screened = gated_outcomes(gated_operands(SIDES[side]))
    assert_close(screened, plain)


@jax.jit
def gated_outcomes(args):
    """Without a screen, and with one."""

    def outcome(screen):
        def function(*args):
            return gated_mlp(
                *args[:5], b_gate=args[5], b_up=args[6], b_out=args[7], screen=screen,
                surrogate=Rectangle(0.3), capacity=CAPACITY,
            )  # fmt: skip

        y, pullback = jax.vjp(function, *args)
        return [y, *pullback(cotangent(*y.shape))]

    return outcome(None), outcome(True)


def test_gradients_of_touched_features():
    args = operands(1.7)

    @jax.jit
    def outcome(args, screen):
        y, pullback = sparse_mlp_vjp(*args[:4], b_in=args[4], capacity=CAPACITY, screen=screen)
        return y, *pullback(cotangent(*y.shape))

    one, other = outcome(args, prepare_screen(args[1])), outcome(args, None)
    assert_close(jax.tree.leaves(one), jax.tree.leaves(other))


# the public door


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, w: sparse_mlp(x, w, w, screen="int4"), ValueError, "'int8', 'bfloat16'"),
        (lambda x, w: sparse_mlp(x, w, w, screen=3), TypeError, "prepare_screen"),
        (
            lambda x, w: sparse_mlp(x, w, w, screen=prepare_screen(w[:-1])),
            ValueError,
            r"\(3, 4\), but these have \(4, 4\)",
        ),
        (
            lambda x, w: sparse_mlp(x, w, w, screen=prepare_screen(w[:-1], "bfloat16")),
            ValueError,
            r"\(3, 4\), but these have \(4, 4\)",
        ),
        (lambda x, w: prepare_screen(w, "int4"), ValueError, "but is 'int4'"),
        (lambda x, w: prepare_screen(w[0]), ValueError, r"has shape \(4,\)"),
        (lambda x, w: prepare_screen(w.astype(int)), TypeError, "astype"),
        (lambda x, w: prepare_screen(jnp.zeros((1, 2**17 + 1))), ValueError, "bfloat16"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(jnp.ones((2, 4)), jnp.eye(4))


def test_operands_without_elements():
    w = jnp.ones((8, 4))
    assert sparse_mlp(jnp.ones((0, 4)), w, w, screen=True).shape == (0, 4)
