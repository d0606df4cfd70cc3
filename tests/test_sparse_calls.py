"""How the sparse products may be called: under strict modes, eagerly, and with wrong operands."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from runs import COMPILED
from sparse_cases import dense_gated, dense_mlp, gated_operands, operands

from jaxtrelu import bits, compact_mlp, gated_mlp, sparse_mlp, sparse_mlp_vjp


def mlp(function, x, w_in, w_out, threshold, b_in, b_out, **options):
    return function(x, w_in, w_out, threshold, b_in=b_in, b_out=b_out, **options)


def by_feature(*args):
    """`sparse_mlp_vjp`, as a function that other transformations do not see through."""
    y, pullback = mlp(sparse_mlp_vjp, *args)
    return jax.tree.map(jnp.sum, pullback(y))


def gated(x, w_gate, w_up, w_out, threshold, b_gate, b_up, b_out):
    biases = {"b_gate": b_gate, "b_up": b_up, "b_out": b_out}
    return gated_mlp(x, w_gate, w_up, w_out, threshold, **biases)


PRODUCTS = {
    "sparse": (partial(mlp, sparse_mlp), operands(1.5), lambda *args: dense_mlp(*args)[0]),
    "compact": (partial(mlp, compact_mlp), operands(1.5), lambda *args: dense_mlp(*args)[0]),
    "gated": (gated, gated_operands(1.5), dense_gated),
    "gated, few examples": (gated, gated_operands(1.5, 3), dense_gated),
    "gated, one example": (gated, gated_operands(1.5, 1), dense_gated),
}
#: What float32 operands would be promoted with, bfloat16 or float64 ones are not either.
DTYPES = (pytest.param("float32", marks=pytest.mark.slow), "bfloat16", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_strict_promotion_of_values_and_gradients(strict_promotion, name, dtype):
    """Promotions are refused while a function is traced, so nothing needs to run."""
    product, args, _ = PRODUCTS[name]
    with jax.enable_x64(dtype == "float64"):
        shapes = [jax.ShapeDtypeStruct(a.shape, dtype) for a in args]
        value = jax.eval_shape(product, *shapes)
        assert value.dtype == dtype
        slopes = jax.eval_shape(
            jax.grad(lambda *a: jnp.sum(product(*a)), range(len(args))), *shapes
        )
    assert [s.dtype for s in slopes] == [dtype] * len(args)


@pytest.mark.parametrize("name", PRODUCTS)
def test_strict_promotion_of_thresholds_in_a_wider_dtype(strict_promotion, name):
    """The output has x's dtype and the threshold's gradient its own: no promotion leaks out."""
    product, args, _ = PRODUCTS[name]
    place = 4 if name.startswith("gated") else 3
    wanted = ["float64" if i == place else "float32" for i in range(len(args))]
    with jax.enable_x64(True):
        shapes = [jax.ShapeDtypeStruct(a.shape, d) for a, d in zip(args, wanted, strict=True)]
        assert jax.eval_shape(product, *shapes).dtype == "float32"
        slopes = jax.grad(lambda *a: jnp.sum(product(*a)), range(len(args)))
        assert [s.dtype for s in jax.eval_shape(slopes, *shapes)] == wanted


@pytest.mark.parametrize("dtype", DTYPES)
def test_strict_promotion_of_gradients_by_feature(strict_promotion, dtype):
    with jax.enable_x64(dtype == "float64"):
        shapes = [jax.ShapeDtypeStruct(a.shape, dtype) for a in operands(1.5)]
        assert jax.eval_shape(by_feature, *shapes).w_in.dtype == dtype


@pytest.mark.parametrize("name", quick(["sparse", "compact", "gated"], {"sparse"}))
def test_float64_is_exact_to_float64(name):
    product, args, reference = PRODUCTS[name]
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(a, np.float64)) for a in args]

        def both(function, *args):
            return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(function(*a))), range(4))(*args)

        ours = jax.jit(partial(both, product))(*args)
        theirs = jax.jit(partial(both, reference))(*args)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_number_is_taken_in_the_dtype_of_what_it_is_compared_with(strict_promotion, name):
    """0.7 is not above 0.7, as it would be above 0.7 rounded to float32; an array stays rounded."""
    function = gated_mlp if name.startswith("gated") else PRODUCTS[name][0].args[0]
    examples = {"gated, few examples": 3, "gated, one example": 1}.get(name, 40)
    with jax.enable_x64(True):
        x, one = jnp.full((examples, 1), 0.7, jnp.float64), jnp.ones((1, 1), jnp.float64)
        weights = [one] * (3 if function is gated_mlp else 2)
        for number in (0.7, np.float64(0.7)):
            assert not np.any(function(x, *weights, number))
        for array in (jnp.float32(0.7), jnp.full(1, 0.7, jnp.float32)):
            assert np.all(np.asarray(function(x, *weights, array)) > 0)


@pytest.mark.parametrize("name", quick([*PRODUCTS, "by feature"], {"sparse"}))
def test_eager_calls_compile_once_per_shape(name):
    """Loops and conditionals with fresh bodies would be compiled at every call."""
    product, args, _ = PRODUCTS.get(name, (by_feature, operands(1.5), None))

    def call():
        product(*args)
        # The gradients of a few examples and of one are those of "gated".
        if name != "by feature" and not name.startswith("gated, "):
            jax.grad(lambda *a: jnp.sum(product(*a)), range(len(args)))(*args)
        return len(COMPILED)

    before = len(COMPILED)
    first = call()
    assert before < first
    assert call() == first


# what is refused, and what is taken

X, W_IN, W_OUT, *_ = operands(1.0, 3)
ALL = [sparse_mlp, sparse_mlp_vjp, compact_mlp]


@pytest.mark.parametrize("product", ALL)
def test_wrong_operands_say_what_to_pass(product):
    float8, kernel = W_IN.astype("float8_e4m3fn"), {"implementation": "experimental_mosaic_gpu"}
    for words, error, args, options in (
        ("`threshold` is NaN", ValueError, (X, W_IN, W_OUT, float("nan")), {}),
        ("`threshold` should be a real array", TypeError, (X, W_IN, W_OUT, 1j), {}),
        (r"`threshold` should be .* of shape \(64,\)", ValueError, (X, W_IN, W_OUT, W_OUT[0]), {}),
        ("`w_in` should be feature-major.*Pass w_in.T", ValueError, (X, W_IN.T, W_OUT), {}),
        (r"`w_in` has dtype float8.*w_in.astype\('bfloat16'\)", TypeError, (X, float8, W_OUT), {}),
        ("`w_out` should be feature-major.*Pass w_out.T", ValueError, (X, W_IN, W_OUT.T), {}),
        ("`x` should be floating point", TypeError, (X.astype(int), W_IN, W_OUT), {}),
        (r"`b_in` should have shape \(64,\)", ValueError, (X, W_IN, W_OUT), {"b_in": X[0]}),
        (r"`b_out` should have shape \(5,\)", ValueError, (X, W_IN, W_OUT), {"b_out": X[0]}),
        ("`capacity` should be at least 1", ValueError, (X, W_IN, W_OUT), {"capacity": 0}),
        ("`capacity` should be a whole number", TypeError, (X, W_IN, W_OUT), {"capacity": 2.5}),
        ("`fill` should be 0 here", ValueError, (X, W_IN, W_OUT), {"variant": "hard", "fill": 1}),
        ("no zeros to skip", ValueError, (X, W_IN, W_OUT), {"variant": "clamp"}),
        ("it has no kernel", NotImplementedError, (X, W_IN, W_OUT), kernel),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            product(*args, **options)


@pytest.mark.parametrize("product", ALL)
def test_a_transposed_weight_is_named_also_with_a_threshold_for_each_feature(product):
    threshold = jnp.ones(64)
    with pytest.raises(ValueError, match=r"`w_in` should be feature-major, of shape \(m, 8\)"):
        product(X, W_IN.T, W_OUT, threshold)
    # As many outputs as features: only the first weight can be told from its transpose.
    with pytest.raises(ValueError, match=r"`w_in` should be feature-major, of shape \(m, 8\)"):
        product(X, W_IN.T, jnp.ones((64, 64)), threshold)


def test_capacities_of_numpy_are_numbers():
    # A multiple of the number of devices, so that they can share the lists.
    y = sparse_mlp(X, W_IN, W_OUT, capacity=np.int64(24), with_activity=True)[1]
    assert y.features.shape == (3 * 24,)


def test_bits_under_strict_promotion(strict_promotion):
    def everything(mask):
        words = bits.pack(mask)
        indices, values, _ = bits.compact(words, 70, jnp.where(mask, 2.0, 0.0))
        expanded = bits.expand(indices, values, 70)
        k = jnp.zeros((3, 1), jnp.int32)
        turned = bits.unpack(bits.transpose(words, 70), 3)
        return expanded, bits.rank(words, bits.select(words, k)), turned, bits.count(words)

    mask = np.random.default_rng(0).random((3, 70)) < 0.3
    expanded, back, turned, count = jax.jit(everything)(mask)
    np.testing.assert_array_equal(expanded, 2.0 * mask)
    np.testing.assert_array_equal(back, np.zeros((3, 1)))
    np.testing.assert_array_equal(turned, mask.T)
    np.testing.assert_array_equal(count, mask.sum(1))
