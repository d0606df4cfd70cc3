"""Bad input at the public door: what is raised, and that its words help."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrelu
from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, interop, nnx, thresholded_relu

X = jnp.ones((8, 16))

TYPE_ERRORS = {
    "complex": (lambda: thresholded_relu(X + 0j), r"`x` should be a real array.*complex64"),
    "bool": (lambda: thresholded_relu(X > 0), r"`x` should be a real array.*bool.*astype"),
    "python bool": (lambda: thresholded_relu(True), r"`x` should be a real array.*True"),
    "string": (lambda: thresholded_relu("1.0"), r"`x` should be a real array.*'1.0' \(str\)"),
    "none": (lambda: thresholded_relu(None), r"`x` should be a real array.*NoneType"),
    "ragged": (lambda: thresholded_relu([[1.0], [1.0, 2.0]]), r"list that does not form one"),
    "objects": (lambda: thresholded_relu(np.array([None, 1])), r"`x` should be a real array"),
    "text array": (lambda: thresholded_relu(np.array(["a"])), r"`x` should be a real array"),
    "threshold none": (lambda: thresholded_relu(X, None), r"`threshold` should be a real array"),
    "threshold bool": (lambda: thresholded_relu(X, True), r"`threshold` should be a real array"),
    "threshold complex": (lambda: thresholded_relu(X, 1j), r"`threshold` should be a real array"),
    "float threshold, integer x": (
        lambda: thresholded_relu(jnp.arange(3), 0.5),
        r"`threshold` should be an integer for x of dtype int32, but is 0.5",
    ),
    "float array, integer x": (
        lambda: thresholded_relu(jnp.arange(3), jnp.float32(1)),
        r"`threshold` should be an integer.*float32.*astype",
    ),
    "no common integer dtype": (
        lambda: thresholded_relu(jnp.arange(3, dtype=jnp.uint32), jnp.int32(1)),
        r"no common integer dtype.*uint32",
    ),
    "traced ceiling": (
        lambda: jax.jit(lambda m: thresholded_relu(X, ceiling=m))(1.0),
        r"`ceiling` should be a Python number.*compiled program",
    ),
    "fill text": (lambda: thresholded_relu(X, variant="hard", fill="0"), r"`fill` should be a Py"),
    "surrogate class": (
        lambda: thresholded_relu(X, variant="hard", surrogate=Rectangle),
        r"`surrogate` should be a jaxtrelu surrogate",
    ),
    "bandwidth text": (lambda: Rectangle("wide"), r"`bandwidth` of Rectangle should be a number"),
    "jump_relu without": (
        lambda: jaxtrelu.jump_relu(X, 0.5, surrogate=None),
        r"threshold does not learn.*Rectangle",
    ),
    "antiderivative of integers": (
        lambda: jaxtrelu.antiderivative(jnp.arange(3), 1),
        r"`x` should be floating point here, but has dtype int32",
    ),
}

VALUE_ERRORS = {
    "nan threshold": (lambda: thresholded_relu(X, float("nan")), r"`threshold` is NaN"),
    "nan numpy threshold": (lambda: thresholded_relu(X, np.float32("nan")), r"`threshold` is NaN"),
    "shapes": (
        lambda: thresholded_relu(X, jnp.ones(5)),
        r"against x of shape \(8, 16\), but has shape \(5,\).*\(16,\)",
    ),
    "broadcasts x": (
        lambda: thresholded_relu(X[0], jnp.ones((8, 16))),
        r"against x of shape \(16,\), but has shape \(8, 16\)",
    ),
    "leading one": (
        lambda: thresholded_relu(X[0], jnp.ones((1, 16))),
        r"against x of shape \(16,\), but has shape \(1, 16\)",
    ),
    "variant": (lambda: thresholded_relu(X, variant="soft"), r"'shift', 'hard', 'clamp'.*'soft'"),
    "unhashable variant": (lambda: thresholded_relu(X, variant=["shift"]), r"`variant` should be"),
    "ceiling of hard": (
        lambda: thresholded_relu(X, variant="hard", ceiling=1.0),
        r"`ceiling` belongs to variant='shift'.*'hard'",
    ),
    "ceiling zero": (lambda: thresholded_relu(X, ceiling=0), r"`ceiling` should be greater than 0"),
    "ceiling nan": (lambda: thresholded_relu(X, ceiling=float("nan")), r"`ceiling` is NaN"),
    "fill of shift": (lambda: thresholded_relu(X, fill=1), r"`fill` belongs to variant='hard'"),
    "fill of 400 digits": (
        lambda: thresholded_relu(X, variant="hard", fill=10**400),
        r"`fill` is larger than any dtype holds",
    ),
    "infinite fill of a narrow dtype": (
        lambda: thresholded_relu(X.astype(jnp.float8_e4m3fn), variant="hard", fill=-float("inf")),
        r"`fill` = -inf does not fit in the dtype of x, float8_e4m3fn, .* 448\. Cast .* first\.$",
    ),
    "infinity of a narrow dtype": (
        lambda: thresholded_relu(X.astype(jnp.float8_e4m3fn), float("inf")),
        r"`threshold` = inf does not fit .* float8_e4m3fn, .* 448\. Cast x to a wider .* first\.$",
    ),
    "surrogate on clamp": (
        lambda: thresholded_relu(X, variant="clamp", surrogate=Rectangle(0.1)),
        r"nothing to estimate for variant='clamp', max\(x, threshold\).*pass variant='hard'",
    ),
    "no zeros": (
        lambda: jaxtrelu.thresholded_glu(X, X, variant="clamp"),
        r"'clamp' has no zeros to skip: it is max\(x, threshold\). Pass 'shift' or 'hard'",
    ),
    "a fill of a gated unit": (
        lambda: jaxtrelu.thresholded_glu(X, X, variant="hard", fill=2.0),
        r"`fill` should be 0 here, but is 2\.0: .* Write the same with jaxtrelu\.thresholded_relu",
    ),
    "shapes of a linear layer": (
        lambda: jaxtrelu.thresholded_linear(X, X, 0.5),
        r"`x` should have shape \(\.\.\., d\) and `w` \(d, n\), but.*\(8, 16\) and \(8, 16\)",
    ),
    "a linear layer's weight turned": (
        lambda: jaxtrelu.thresholded_linear(X, X[:3], 0.5),
        r"`w` \(d, n\), but .* \(3, 16\)\. Pass w\.T if `w` is \(n, d\)\.$",
    ),
    "a gated product's weight turned": (
        lambda: jaxtrelu.gated_mlp(X, X, X.T, X, 0.5),
        r"`w_up` should have the shape of `w_gate`, .*\. Pass w_up\.T if it is \(d, m\)\.$",
    ),
    "an integer that JAX does not hold": (
        lambda: thresholded_relu(10**12),
        r"`x` = 1000000000000 does not fit in int32, which JAX takes a Python integer in",
    ),
    "a threshold of 400 digits": (
        lambda: thresholded_relu(X, 10**400),
        r"`threshold` = 10{39} does not fit .* float32",
    ),
    "integer out of range": (
        lambda: thresholded_relu(jnp.arange(3, dtype=jnp.uint8), -1),
        r"does not fit in x's dtype uint8, which holds 0 to 255",
    ),
    "number out of range": (
        lambda: thresholded_relu(X.astype(jnp.float16), -1e5),
        r"-100000.0 does not fit .* compared, float16, whose largest number is 65504",
    ),
    "number out of float32": (lambda: jaxtrelu.derivative(X, 1e39), r"does not fit .* float32"),
    "integer out of float32": (lambda: thresholded_relu(X, 10**39), r"does not fit .* float32"),
    "number out of a narrow dtype": (
        lambda: thresholded_relu(X.astype(jnp.float8_e4m3fn), 1000.0),
        r"does not fit .* float8_e4m3fn, whose largest number is 448",
    ),
    "number out of a block's range": (
        lambda: jaxtrelu.sparse_mlp(X, X, X, 1e39),
        r"does not fit .* float32",
    ),
}


@pytest.mark.parametrize(("call", "words"), TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_type_errors(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize(("call", "words"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_value_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("surrogate", [Rectangle, Triangle, Gaussian, Sigmoid])
@pytest.mark.parametrize("bandwidth", [0, -1.0, float("inf"), float("nan")])
def test_bandwidths(surrogate, bandwidth):
    with pytest.raises(ValueError, match=f"{surrogate.__name__}.*finite and greater than 0"):
        surrogate(bandwidth)


@pytest.mark.parametrize("surrogate", [Rectangle, Triangle, Gaussian, Sigmoid])
def test_a_bandwidth_whose_inverse_is_infinite(surrogate):
    with pytest.raises(ValueError, match=r"at least 1.18e-38, but is 1e-39: the density"):
        surrogate(1e-39)
    slope = jax.grad(lambda t: jaxtrelu.jump_relu(jnp.float32(2), t, surrogate=surrogate(2e-38)))
    assert slope(1.0) == 0


def test_thresholds_that_fit():
    """Infinities, the largest number, and where a block compares in a wider dtype than x's."""
    x = X.astype(jnp.float16)
    for threshold in (float("inf"), 65504.0, 10**4, 1e-30):
        assert thresholded_relu(x, threshold).dtype == x.dtype
    assert (thresholded_relu(x, -float("inf"), variant="clamp") == x).all()
    assert not jaxtrelu.sparse_mlp(x, x, x, 1e5).any()
    assert not _linear(x, 1e5).any()


def _linear(x, threshold, **options):
    return jaxtrelu.thresholded_linear(x, jnp.eye(16, dtype=x.dtype), threshold, **options)


def _one_linear(x, threshold):
    return jaxtrelu.thresholded_linear(x, jnp.ones((1, 1), x.dtype), threshold)


def _layer(x, threshold, **options):
    return nnx.ThresholdedReLU(threshold, **options)(x)


def _network(x, threshold, **options):
    return interop.activation(threshold, dtype=x.dtype, **options)(x)


def _sparse(x, threshold):
    return jaxtrelu.sparse_mlp(x, *[jnp.ones((1, 1), x.dtype)] * 2, threshold)


@pytest.mark.parametrize("function", [thresholded_relu, jaxtrelu.step, _one_linear, _sparse])
def test_thresholds_keep_their_precision_beside_a_narrow_dtype(function):
    """An array of integers too: 259 is 260 in bfloat16, and 260 is above it."""
    x = jnp.full((1, 1), 260, jnp.bfloat16)
    for kind in (jnp.int32, jnp.int16, jnp.uint32, jnp.float32):
        for threshold in (jnp.array(259, kind), jnp.array([259], kind), np.array([259], kind)):
            assert function(x, threshold) == 1
    assert jax.jit(function)(x, np.int32(259)) == 1


def test_a_number_in_a_linear_layer_is_taken_in_float32_at_least():
    """As in the blocks: .10004997 is above .1, and not above .1 in bfloat16, which is .1001."""
    x, w = jnp.ones((1, 2), jnp.bfloat16), jnp.array([[0.10009765625], [-4.77e-5]], jnp.bfloat16)
    one = jnp.ones((1, 1), jnp.bfloat16)
    for threshold in (0.1, jnp.float32(0.1)):
        linear = jaxtrelu.thresholded_linear(x, w, threshold, variant="hard")
        block = jaxtrelu.compact_mlp(x, w.T, one, threshold, variant="hard")
        assert linear == block and linear > 0
        under_jit = jax.jit(lambda t: jaxtrelu.thresholded_linear(x, w, t, variant="hard"))
        assert under_jit(threshold) == linear


FILLED = [
    thresholded_relu, jaxtrelu.derivative, jaxtrelu.antiderivative, _linear, _layer, _network,
]  # fmt: skip


@pytest.mark.parametrize("function", FILLED, ids=lambda function: function.__name__)
def test_a_fill_that_the_dtype_does_not_hold(function):
    """It would be infinite in silence. An infinity that is meant is one."""
    words = (
        r"`fill` = 1000000\.0 does not fit in the dtype of x, float16, whose largest number is "
        r"65504\. Cast x to a wider dtype first, or pass an infinity\."
    )
    x = X.astype(jnp.float16)
    with pytest.raises(ValueError, match=words):
        function(x, 2.0, variant="hard", fill=1e6)
    for fill in (-65504, 1e-30, float("inf")):
        assert function(x, 2.0, variant="hard", fill=fill).dtype == x.dtype
    assert function(X.astype(jnp.bfloat16), 2.0, variant="hard", fill=1e6).shape == X.shape


def test_errors_come_under_jit_too():
    with pytest.raises(ValueError, match=r"shape \(8, 16\), but has shape \(5,\)"):
        jax.jit(thresholded_relu)(X, jnp.ones(5))


def test_the_family_of_surrogates_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        jaxtrelu.Surrogate(0.1)
    assert isinstance(Rectangle(0.1), jaxtrelu.Surrogate)
