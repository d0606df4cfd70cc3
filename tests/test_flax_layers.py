"""`ThresholdedReLU` of both Flax interfaces: construction, values, gradients and dtypes."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax_interfaces import Nnx, both

import jaxtrelu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5)).astype(np.float32)
COTANGENT = RNG.normal(size=X.shape).astype(np.float32)
CHANNELS = (-0.6, -0.2, 0.1, 0.4, 0.9)
PER_CHANNEL = np.float32(CHANNELS)
UNIFORM = jax.nn.initializers.uniform(0.5)


def layer_of(flax, *args, x=X, **arguments):
    return flax("ThresholdedReLU", x, *args, **arguments)


# --- construction ----------------------------------------------------------------------------


@both
def test_a_fixed_number_stores_nothing(flax):
    layer = layer_of(flax, 0.25)
    assert layer.threshold_value == 0.25
    assert not layer.params
    assert not layer.fixed
    np.testing.assert_array_equal(layer(X), jaxtrelu.thresholded_relu(X, 0.25))
    np.testing.assert_array_equal(layer_of(flax)(X), jaxtrelu.thresholded_relu(X))


@both
@pytest.mark.parametrize(
    ("threshold", "axis", "shape"),
    [
        (0.25, -1, (5,)),
        (CHANNELS, None, (5,)),
        (PER_CHANNEL, 1, (5,)),
        (jnp.float32(0.5), None, ()),
        (UNIFORM, None, ()),
        (UNIFORM, (0, 1), (6, 5)),
    ],
)
def test_a_fixed_threshold_that_is_stored_is_no_parameter(flax, threshold, axis, shape):
    layer = layer_of(flax, threshold, axis=axis)
    assert not layer.params
    assert list(layer.fixed) == ["threshold"]
    theta = layer.fixed["threshold"]
    assert theta.shape == shape
    assert theta.dtype == jnp.float32
    np.testing.assert_array_equal(layer.threshold_value, theta)
    np.testing.assert_allclose(layer(X), oracle.value(X, np.asarray(theta)), rtol=1e-6)


@both
def test_an_initialiser_draws_what_it_is_asked_for(flax):
    layer = layer_of(flax, UNIFORM, axis=-1, learned=True)
    theta = layer.params["threshold"]
    assert theta.shape == (5,)
    assert len(np.unique(theta)) == 5
    again = layer_of(flax, UNIFORM, axis=-1, learned=True).params["threshold"]
    np.testing.assert_array_equal(theta, again)
    with pytest.raises(ValueError, match=r"asked for shape \(5,\), but returned shape \(3,\)"):
        layer_of(flax, lambda key, shape, dtype: jnp.ones(3), axis=-1)
    # One that does not look at the dtype does not decide it.
    narrow = layer_of(flax, lambda key, shape, dtype: np.ones(shape, np.int32), axis=-1)
    assert narrow.fixed["threshold"].dtype == jnp.float32


REFUSED = [
    ({"variant": "hard", "learned": True}, "would not learn.*jaxtrelu.Rectangle"),
    (
        {"threshold": 0.0, "variant": "hard", "learned": True, "surrogate": jaxtrelu.Rectangle(1)},
        "would not leave 0",
    ),
    (
        {
            "threshold": jax.nn.initializers.zeros,
            "variant": "hard",
            "learned": True,
            "surrogate": jaxtrelu.Rectangle(1),
        },
        "would not leave 0",
    ),
    ({"learned": True, "param_dtype": jnp.bfloat16}, "param_dtype.*float32.*bfloat16"),
    ({"learned": True, "threshold": float("inf")}, "finite, but is inf"),
    ({"threshold": 0.5, "axis": -1, "param_dtype": jnp.int32}, "does not fit in param_dtype=int32"),
    ({"threshold": 300, "axis": -1, "param_dtype": jnp.int8}, "does not fit in param_dtype=int8"),
    ({"param_dtype": jnp.complex64}, "floating point or integer, but is complex64"),
    ({"variant": "soft"}, "'shift', 'hard', 'clamp'"),
    ({"variant": "hard", "ceiling": 1.0}, "ceiling"),
    ({"threshold": float("nan")}, "NaN"),
    ({"threshold": (0.1, float("nan"))}, "NaN"),
    ({"threshold": CHANNELS, "axis": 0}, r"shape of the channels, \(6,\).*shape \(5,\)"),
    ({"threshold": np.ones((2, 3)), "axis": 1}, r"\(5,\).*shape \(2, 3\)"),
]


@both
@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_cannot_work_is_refused(flax, arguments, words):
    with pytest.raises(ValueError, match=words):
        layer_of(flax, **arguments)


@both
@pytest.mark.parametrize("threshold", ["0.5", None, True, (0.1, "a"), ((1.0,), (1.0, 2.0)), 1j])
def test_what_is_no_number_is_refused(flax, threshold):
    with pytest.raises(TypeError, match="`threshold` of a layer should be a number, an array"):
        layer_of(flax, threshold)


@both
def test_linen_and_nnx_check_when_they_are_constructed(flax):
    kind = getattr(jaxtrelu, "nnx" if flax is Nnx else "linen").ThresholdedReLU
    with pytest.raises(ValueError, match="'shift', 'hard', 'clamp'"):
        kind(variant="soft")


@both
def test_x_without_the_channels_names_both_shapes(flax):
    layer = layer_of(flax, PER_CHANNEL)
    with pytest.raises(ValueError, match=r"shape \(5,\).*axis -1.*shape \(6, 4\) has 4"):
        layer(X[:, :4])
    layer = layer_of(flax, np.ones((6, 5)), axis=(0, 1))
    with pytest.raises(ValueError, match="does not have"):
        layer(X[0])
    with pytest.raises(TypeError, match="`x` should be a real array"):
        layer("x")


# --- values and gradients ---------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("variant", "ceiling"), [("shift", None), ("shift", 0.75), ("clamp", None)]
)
@pytest.mark.parametrize("threshold", [0.3, CHANNELS], ids=["scalar", "channel"])
def test_a_learned_threshold_gets_the_true_gradient(flax, variant, ceiling, threshold):
    layer = layer_of(flax, threshold, learned=True, variant=variant, ceiling=ceiling)
    theta = np.float32(threshold)
    options = {"variant": variant, "ceiling": ceiling}
    np.testing.assert_allclose(layer(X), oracle.value(X, theta, **options), rtol=1e-6)
    wanted_x, wanted = oracle.cotangents(X, theta, COTANGENT, **options)
    found = layer.gradients(lambda layer: jnp.sum(layer(X) * COTANGENT))
    assert list(found) == ["threshold"]
    np.testing.assert_allclose(found["threshold"], wanted, rtol=1e-5, atol=1e-6)
    dx = jax.grad(lambda x: jnp.sum(layer(x) * COTANGENT))(jnp.asarray(X))
    np.testing.assert_array_equal(dx, wanted_x.astype(np.float32))

    # Differences of the oracle: exact for a piecewise linear function away from its kinks.
    def total(theta):
        return (oracle.value(X, theta, **options) * COTANGENT).sum()

    for index in np.ndindex(theta.shape):
        bump = np.zeros(theta.shape)
        bump[index] = 1e-6
        slope = (total(theta + bump) - total(theta - bump)) / 2e-6
        np.testing.assert_allclose(wanted[index], slope, rtol=1e-6, atol=1e-6)


@both
def test_hard_learns_with_a_surrogate(flax):
    surrogate = jaxtrelu.Triangle(0.4)
    layer = layer_of(flax, CHANNELS, learned=True, variant="hard", surrogate=surrogate)
    found = layer.gradients(lambda layer: jnp.sum(layer(X)))

    def density(d):
        return np.maximum(1 - np.abs(d) / 0.4, 0) / 0.4

    _, wanted = oracle.cotangents(X, PER_CHANNEL, 1.0, variant="hard", density=density)
    assert np.count_nonzero(wanted) >= 4
    np.testing.assert_allclose(found["threshold"], wanted, rtol=1e-5)


@both
def test_fill_closes_to_a_value(flax):
    layer = layer_of(flax, 0.25, variant="hard", fill=-2.0)
    wanted = oracle.value(X, 0.25, variant="hard", fill=-2.0)
    np.testing.assert_array_equal(layer(X), wanted.astype(np.float32))


@both
@pytest.mark.parametrize(
    ("shape", "axis", "letters"),
    [
        ((3,), 1, "b"),
        ((3,), -3, "b"),
        ((5,), None, "d"),
        ((4, 5), None, "cd"),
        ((3, 5), (1, -1), "bd"),
        ((5, 3), (-1, 1), "db"),
    ],
)
def test_channels_along_any_axes(flax, shape, axis, letters):
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    theta = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    layer = layer_of(flax, theta, x=x, axis=axis, learned=True)
    aligned = np.einsum(f"{letters},abcd->abcd", theta, np.ones(x.shape))
    np.testing.assert_allclose(layer(x), oracle.value(x, aligned), rtol=1e-6)
    found = layer.gradients(lambda layer: jnp.sum(layer(x)))["threshold"]
    counted = np.einsum(f"abcd->{letters}", oracle.cotangents(x, aligned, 1.0)[1])
    np.testing.assert_array_equal(found, counted.astype(np.float32))


# --- dtypes ----------------------------------------------------------------------------------


@both
def test_bfloat16_activations_with_a_float32_threshold(flax):
    # bfloat16(1) < 1.001, which rounds to 1 in bfloat16: the gate at 1 tells which was compared.
    x = np.float32([0.5, 1.0, 1.0078125, 2.0])
    theta = (0.999, 0.999, 1.001, 1.001)
    layer = layer_of(flax, theta, x=x, learned=True, dtype=jnp.bfloat16)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    assert layer.threshold_value.dtype == jnp.float32
    assert (np.asarray(y) > 0).tolist() == [False, True, True, True]
    wanted = oracle.rounded(oracle.value(x, np.float32(theta)), "bfloat16")
    np.testing.assert_allclose(np.float64(y), wanted, rtol=oracle.RTOL["bfloat16"])
    found = layer.gradients(lambda layer: layer(x).astype(jnp.float32).sum())["threshold"]
    assert found.dtype == jnp.float32
    assert found.tolist() == [0.0, -1.0, -1.0, -1.0]


@both
def test_the_dtype_by_default_is_that_of_x(flax):
    layer = layer_of(flax, PER_CHANNEL, learned=True)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        x = jnp.asarray(X, dtype)
        assert layer(x).dtype == dtype
        np.testing.assert_array_equal(layer(x), jaxtrelu.thresholded_relu(x, PER_CHANNEL))


@both
def test_a_fixed_number_is_taken_in_the_dtype_of_x_as_by_the_function(flax):
    x = jnp.asarray([0.5, 1.0, 1.0078125], jnp.bfloat16)
    wanted = jaxtrelu.thresholded_relu(x, 1.001)
    np.testing.assert_array_equal(layer_of(flax, 1.001, x=x)(x), wanted)
    np.testing.assert_array_equal(layer_of(flax, np.float32(1.001), x=x)(x), wanted)


@both
def test_float64_is_stored_where_it_is_asked_for_alone(flax):
    with jax.enable_x64(True):
        theta = np.float64(CHANNELS)
        x = X.astype(np.float64)
        assert layer_of(flax, theta, x=x, learned=True).threshold_value.dtype == jnp.float32
        layer = layer_of(flax, theta, x=x, learned=True, param_dtype=jnp.float64)
        assert layer.threshold_value.dtype == jnp.float64
        np.testing.assert_allclose(layer(x), oracle.value(x, theta), rtol=1e-14)


@both
def test_integers_with_an_integer_threshold(flax):
    x = jnp.arange(-3, 4)
    for arguments in ({}, {"axis": -1, "param_dtype": jnp.int32}):
        assert layer_of(flax, 1, x=x, **arguments)(x).tolist() == [0, 0, 0, 0, 0, 1, 2]


# --- one rule for names --------------------------------------------------------------------------

ARGUMENTS = {
    "ThresholdedReLU": ((), {"axis": -1, "learned": True}),
    "JumpReLU": ((5,), {"surrogate": jaxtrelu.Rectangle(0.1)}),
    "CompactMLP": ((5,), {"learned": True}),
}


@both
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_every_layer_calls_its_threshold_by_one_name(flax, kind):
    args, arguments = ARGUMENTS[kind]
    layer = flax(kind, X, *args, threshold=0.25, **arguments)
    assert layer.params["threshold"].shape == (5,)
    assert layer.params["threshold"].dtype == jnp.float32
    np.testing.assert_array_equal(layer.threshold_value, np.full(5, 0.25, np.float32))
    if flax is Nnx:
        assert isinstance(layer.layer.threshold, jaxtrelu.nnx.Threshold)


@both
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_x64_leaves_thresholds_float32(flax, kind):
    args, arguments = ARGUMENTS[kind]
    with jax.enable_x64(True):
        for start in (1, 0.25, np.float64(0.25)):
            layer = flax(kind, X, *args, threshold=start, **arguments)
            assert layer.params["threshold"].dtype == jnp.float32
        wide = flax(kind, X, *args, threshold=1, param_dtype=jnp.float64, **arguments)
        assert wide.params["threshold"].dtype == jnp.float64
        assert wide.threshold_value.dtype == jnp.float64


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_both_interfaces_have_the_same_options_and_describe_them(kind):
    nnx_kind, linen_kind = getattr(jaxtrelu.nnx, kind), getattr(jaxtrelu.linen, kind)
    here = set(inspect.signature(nnx_kind.__init__).parameters) - {"self"}
    there = set(inspect.signature(linen_kind).parameters) - {"parent", "name"}
    # What Linen reads off x, draws itself, or attaches by initialisers.
    assert here - there <= {"in_features", "features", "rngs", "threshold_metadata"}
    assert there <= here
    for kinds, names in ((nnx_kind, here), (linen_kind, there)):
        text = inspect.getdoc(kinds)
        described = re.findall(r"^  ([\w, ]+):", text, re.MULTILINE)
        assert names == {n.strip() for line in described for n in line.split(",")} & names
        for section in ("onvention at the threshold", "Raises:", "Example:", "Source:"):
            assert section in " ".join(text.split()), section


# --- back ends -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("layer", ["ThresholdedReLU", "JumpReLU", "CompactMLP"])
def test_a_back_end_asked_for_by_name_is_not_replaced(flax, layer):
    arguments = {
        "ThresholdedReLU": (0.5,),
        "JumpReLU": (X.shape[-1],),
        "CompactMLP": (8,),
    }[layer]
    options = {"surrogate": jaxtrelu.Rectangle(0.1)} if layer == "JumpReLU" else {}
    flax(layer, X, *arguments, implementation="xla", **options)(X)
    with pytest.raises(NotImplementedError, match="implementation='mosaic_tpu' cannot compute"):
        flax(layer, X, *arguments, implementation="mosaic_tpu", **options)(X)
