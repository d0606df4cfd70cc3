"""The gated product against the dense one, and the gated unit."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from sparse_cases import (  # fmt: skip
    CAPACITY,
    CASES,
    QUICK,
    SIDES,
    assert_close,
    cotangent,
    dense_gated,
    gated_operands,
    spoilt,
)

from jaxtrelu import Gaussian, thresholded_glu
from jaxtrelu._primitive.spec import block_operands, checked_spec
from jaxtrelu.sparse import _gated, gated_mlp

NAMES = ("x", "w_gate", "w_up", "w_out", "threshold", "b_gate", "b_up", "b_out")
#: More than a few examples have a path of their own, and so has every gradient.
FEW = 3


def call(case, capacity, x, w_gate, w_up, w_out, threshold, b_gate, b_up, b_out):
    options = CASES[case] | {"b_gate": b_gate, "b_up": b_up, "b_out": b_out, "capacity": capacity}
    return gated_mlp(x, w_gate, w_up, w_out, threshold, **options)


def inner_call(case, capacity, x, w_gate, w_up, w_out, threshold, b_gate, b_up, b_out):
    weights, biases = {"w_gate": w_gate, "w_up": w_up}, {"b_gate": b_gate, "b_up": b_up}
    block = block_operands(x, weights, w_out, threshold, biases, b_out)
    return _gated.gated_call(checked_spec(**CASES[case]), capacity, None, block)


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def gradients(case, capacity, *args):
    """Whether the dense path is taken, y and the gradients."""
    y, pullback = jax.vjp(partial(call, case, capacity), *args)
    _, residuals = _gated.forward(*inner_call(case, capacity, *args))
    return residuals.overflow, y, pullback(cotangent(len(y)).astype(y.dtype))


@partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def few(case, capacity, *args):
    """Whether the dense path is taken, and y."""
    _, overflow = _gated.few_examples(*inner_call(case, capacity, *args))
    return overflow, call(case, capacity, *args)


@partial(jax.jit, static_argnums=0)
def dense(case, *args):
    y, pullback = jax.vjp(partial(dense_gated, **CASES[case]), *args)
    return y, pullback(cotangent(len(y)).astype(y.dtype))


@pytest.mark.parametrize(
    "case", quick(["ceiling", "hard", "jump to input", "smoothed shift"], {"jump to input"})
)
@pytest.mark.parametrize("side", SIDES)
def test_values_and_gradients_on_either_path(case, side):
    args = gated_operands(SIDES[side])
    overflow, y, slopes = gradients(case, CAPACITY, *args)
    expected, expected_slopes = dense(case, *args)
    assert bool(overflow) == (side == "dense")
    assert_close([y], [expected])
    assert_close(slopes, expected_slopes, NAMES)


@pytest.mark.parametrize("threshold", [-99.0, 99.0])
def test_all_open_and_none(threshold):
    args = gated_operands(threshold)
    overflow, y, slopes = gradients("hard", CAPACITY, *args)
    assert bool(overflow) == (threshold < 0)
    assert_close([y, *slopes], [dense("hard", *args)[0], *dense("hard", *args)[1]])


@pytest.mark.parametrize("case", ["ceiling", "jump to input"])
@pytest.mark.parametrize("side", SIDES)
def test_a_few_examples_on_either_path(case, side):
    """The capacity bounds the units that any example opens, here about 10 or about 50 of 64."""
    args = gated_operands(SIDES[side], FEW)
    overflow, y = few(case, CAPACITY, *args)
    assert bool(overflow) == (side == "dense")
    assert_close([y], [dense(case, *args)[0]])


@pytest.mark.parametrize("examples", [1, 2, FEW, 8])
def test_a_few_examples_with_several_rounds_of_units(examples):
    """As many units open as rounds are long, one less and one more; nothing is ever dropped."""
    rng = np.random.default_rng(examples)
    units, width, out = 700, 8, 5
    x = rng.normal(size=(examples, width))
    w_gate, w_up = rng.normal(size=(2, units, width))
    w_out = rng.normal(size=(units, out))
    highest = np.sort((x @ w_gate.T).max(0))[::-1]

    @jax.jit
    def both(threshold):
        args = [jnp.asarray(a, jnp.float32) for a in (x, w_gate, w_up, w_out)]
        block = block_operands(
            args[0], {"w_gate": args[1], "w_up": args[2]}, args[3], threshold,
            {"b_gate": None, "b_up": None}, None,
        )  # fmt: skip
        _, overflow = _gated.few_examples(*_gated.gated_call(checked_spec(), 350, None, block))
        return overflow, gated_mlp(*args, threshold, capacity=350)

    for number in (1, 31, 32, 33, 64, 96, 127, 128, 129, 255, 256, 257, 349):
        threshold = (highest[number - 1] + highest[number]) / 2
        overflow, y = both(jnp.float32(threshold))
        expected = (np.maximum(x @ w_gate.T - threshold, 0) * (x @ w_up.T)) @ w_out
        assert not overflow
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_for_a_few_examples_the_union_counts_and_not_the_mean():
    x, *rest = gated_operands(0.9, FEW)
    alike = jnp.broadcast_to(x[:1], x.shape)
    opened = [(a @ rest[0].T + rest[4] > rest[3]) for a in (x, alike)]
    assert all(o.sum(1).mean() < CAPACITY for o in opened)
    assert opened[1].any(0).sum() <= CAPACITY < opened[0].any(0).sum()
    assert [bool(few("ceiling", CAPACITY, a, *rest)[0]) for a in (x, alike)] == [True, False]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", ["ceiling", "jump to input"])
def test_a_closed_gate_contributes_nothing_beside_nan_and_infinity(case, side):
    sound, bad = spoilt(gated_operands(SIDES[side]))
    overflow, y, slopes = gradients(case, CAPACITY, *bad)
    _, expected, expected_slopes = gradients(case, CAPACITY, *sound)
    assert bool(overflow) == (side == "dense")
    assert_close([y, *slopes], [expected, *expected_slopes], ("y", *NAMES))


@pytest.mark.parametrize("side", SIDES)
def test_a_few_examples_and_a_unit_that_one_of_them_opens_beside_nan(side):
    """The unit's weights are read for the example that opens it, and must not reach the others."""
    x, w_gate, w_up, w_out, threshold, *biases = args = gated_operands(SIDES[side], FEW)
    opened = x @ w_gate.T + biases[0] > threshold
    unit = int(jnp.argmax(opened.sum(0) == 1))
    bad = (x, w_gate, w_up, w_out.at[unit].set(jnp.nan), threshold, *biases)
    overflow, y = few("ceiling", CAPACITY, *bad)
    assert bool(overflow) == (side == "dense")
    assert jnp.isnan(y).all(axis=1).tolist() == opened[:, unit].tolist()
    closed = ~opened[:, unit]
    assert_close([y[closed]], [few("ceiling", CAPACITY, *args)[1][closed]])


def test_one_row_asks_for_little_memory():
    """What is for NaN weights is never run, and would yet be asked of the system at each call."""
    d, units = 256, 4096
    shapes = [(1, d), (units, d), (units, d), (units, d)]
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    program = jax.jit(gated_mlp).lower(*args).compile()
    assert program.memory_analysis().temp_size_in_bytes < units * d * 4 / 2


@pytest.mark.parametrize("rows", [FEW, 20])
def test_nan_everywhere(rows):
    args = [a * jnp.nan for a in gated_operands(1.0, rows)]
    run = few if rows == FEW else gradients
    overflow, y, *_ = run("ceiling", CAPACITY, *args)
    assert overflow and jnp.isnan(y).all()


def relative_errors(ours, exact):
    """The largest error of each array that is not zero, relative to its largest number."""
    sizes = [float(jnp.abs(e).max()) for e in exact]
    return [
        float(jnp.abs(a.astype(jnp.float32) - e).max()) / size
        for a, e, size in zip(ours, exact, sizes, strict=True)
        if size  # a threshold without a surrogate has no gradient
    ]


@pytest.mark.parametrize("side", SIDES)
def test_bfloat16_is_the_float32_function_of_the_same_operands_rounded(side):
    low = [a.astype(jnp.bfloat16) for a in gated_operands(SIDES[side])]
    overflow, y, slopes = gradients("hard", CAPACITY, *low)
    expected, exact = dense("hard", *[a.astype(jnp.float32) for a in low])
    assert bool(overflow) == (side == "dense")
    assert y.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in slopes)
    assert max(relative_errors((y, *slopes), (expected, *exact))) <= 2**-7


def test_bfloat16_gates_are_decided_before_rounding():
    """Each threshold here is what some pre-activation just above it would be rounded to.

    So a model that rounds first closes gates that are open, and its gradients are others.
    """
    low = [a.astype(jnp.bfloat16) for a in gated_operands(1.7)]
    x, w_gate, _, _, _, b_gate, *_ = wide = [a.astype(jnp.float32) for a in low]
    z = x @ w_gate.T + b_gate
    rounded = jax.lax.reduce_precision(z, 8, 7)
    chosen = (z > rounded) & (rounded > 1.5)
    theta = jnp.min(jnp.where(chosen, rounded, 3.0), axis=0)
    low[4], wide[4] = theta.astype(jnp.bfloat16), theta
    overflow, y, slopes = gradients("hard", CAPACITY, *low)
    assert not overflow and jnp.any((z > theta) & ~(rounded > theta))
    expected, exact = dense("hard", *wide)
    assert max(relative_errors((y, *slopes), (expected, *exact))) <= 2**-7

    def rounding_first(*args):
        return dense_gated(
            *args[:4], jnp.where(rounded > theta, theta, 99.0), *args[5:], variant="hard"
        )

    other = jax.vjp(rounding_first, *wide)[1](cotangent())
    assert max(relative_errors(other, exact)) > 0.1


def test_leading_shapes_and_shapes_without_elements():
    x, w_gate, w_up, w_out, threshold, *_ = args = gated_operands(1.0, 6)
    y = few("ceiling", CAPACITY, *args)[1]
    shaped = call("ceiling", CAPACITY, x.reshape(2, 3, 8), *args[1:])
    np.testing.assert_allclose(shaped.reshape(6, 5), y, rtol=1e-5, atol=1e-5)
    assert gated_mlp(x[:0], w_gate, w_up, w_out, threshold).shape == (0, 5)
    assert (
        gated_mlp(x[:, :0], w_gate[:, :0], w_up[:, :0], w_out, threshold).tolist() == [[0] * 5] * 6
    )
    assert gated_mlp(x, w_gate[:0], w_up[:0], w_out[:0], 1.0).tolist() == [[0] * 5] * 6


def test_errors_say_what_to_pass():
    x, w_gate, w_up, w_out, *_ = gated_operands(1.0, 2)
    with pytest.raises(ValueError, match=r"`w_up` should have the shape of `w_gate`"):
        gated_mlp(x, w_gate, w_up[1:], w_out, 1.0)
    with pytest.raises(ValueError, match="no zeros"):
        gated_mlp(x, w_gate, w_up, w_out, 1.0, variant="clamp")
    with pytest.raises(ValueError, match="bounded support"):
        gated_mlp(x, w_gate, w_up, w_out, 1.0, variant="hard", surrogate=Gaussian(0.1))
    with pytest.raises(
        TypeError, match=r"`w_up` has dtype float8_e4m3fn.*w_up.astype\('bfloat16'\)"
    ):
        gated_mlp(x, w_gate, w_up.astype("float8_e4m3fn"), w_out, 1.0)


# the gated unit


def reference_glu(gate, up, threshold):
    """vLLM's F.threshold(gate, threshold, 0) * up; products are exact in float32, then rounded."""
    kept = np.where(gate <= np.asarray(threshold, gate.dtype), np.zeros_like(gate), gate)
    return (kept.astype(np.float32) * up.astype(np.float32)).astype(gate.dtype)


def of_vllm():
    """The largest shape in one dtype, and, slow, in the others."""
    for tokens, width in itertools.product([7, 83, 2048], [512, 13824]):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
            slow = tokens * width > 10**7 and dtype != jnp.bfloat16
            marks = pytest.mark.slow if slow else ()
            name = f"{tokens}-{width}-{np.dtype(dtype)}"
            yield pytest.param(tokens, width, dtype, id=name, marks=marks)


@pytest.mark.parametrize(("tokens", "width", "dtype"), list(of_vllm()))
def test_the_shapes_of_vllm_exactly(dtype, width, tokens):
    drawn = np.random.default_rng(width).standard_normal((2, 83, width), np.float32).astype(dtype)
    gate, up = (np.resize(a, (tokens, width)) for a in drawn)  # the rows again and again
    act = partial(thresholded_glu, variant="hard")
    ours = jax.jit(act, static_argnums=2)(gate, up, 0.5)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, np.resize(reference_glu(*drawn, 0.5), (tokens, width)))


def test_glu_gradient():
    gate, up = jnp.array([0.5, 1.0, 2.0]), jnp.array([3.0, 4.0, 5.0])
    d_gate, d_up = jax.grad(lambda g, u: thresholded_glu(g, u, 1.0, variant="hard").sum(), (0, 1))(
        gate, up
    )
    assert d_gate.tolist() == [0, 0, 5] and d_up.tolist() == [0, 0, 2]
