"""A variant is one row of the table and a back end one object: throw-away ones work everywhere."""

import functools
import typing

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxtrelu
import jaxtrelu._linear  # whose primitives are in XLA_FORMS from then on
from jaxtrelu import Rectangle, Triangle
from jaxtrelu._cli import style
from jaxtrelu._primitive import lowering, spec
from jaxtrelu._primitive.lowering import BackEnd, Kernel, register_back_end
from jaxtrelu._primitive.variants import VARIANTS, Variant
from jaxtrelu.interop import _onnx

# Compiled once and run on a few numbers: the compiler need not try hard.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# variants

#: x where open, twice the threshold where closed: no zeros, a jump, a slope of 2 where closed.
FLOOR = Variant(
    formula="x where x > threshold, else 2 threshold",
    opened=lambda x, threshold: jnp.where(threshold != threshold, threshold, x),
    closed=lambda threshold, fill: 2 * threshold,
    integral=lambda above, x, threshold, fill: (
        0.5 * above * (above + 2 * threshold)
        + 2 * threshold * jnp.minimum(x - threshold, jnp.zeros_like(x))
    ),
    input_slope=1,
    threshold_slope=(0, 2),
    jump=lambda threshold, fill: threshold - 2 * threshold,
    has_zeros=False,
)
#: Twice the shifted ReLU: zeros to skip, and slopes other than 1.
DOUBLE = Variant(
    formula="2 max(0, x - threshold)",
    opened=lambda x, threshold: 2 * (x - threshold),
    closed=lambda threshold, fill: jnp.zeros((), threshold.dtype),
    integral=lambda above, x, threshold, fill: above * above,
    input_slope=2,
    threshold_slope=(-2, 0),
)


def test_types_name_what_the_tables_hold():
    assert typing.get_args(spec.VariantName) == spec.selectable_variants()
    assert typing.get_args(spec.ImplementationName) == lowering.implementations()


def test_every_list_of_variants_has_each():
    """What a variant needs beside its row; CONTRIBUTING.md names the same."""
    names = set(spec.selectable_variants())
    assert set(oracle.VARIANTS) == names
    assert set(_onnx._BODIES) == names
    assert set(style.VARIANTS) == names and names <= set(style.COLOURS)
    assert {options.get("variant", "shift") for options in cases.VARIANTS.values()} == names


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setitem(VARIANTS, "floor", FLOOR)
    monkeypatch.setitem(VARIANTS, "double", DOUBLE)


def written(x, threshold, variant):
    """The two, written with `jnp.where`, which differentiates them as the table says."""
    opened, closed = {"floor": (x, 2 * threshold), "double": (2 * (x - threshold), 0 * threshold)}[
        variant
    ]
    return jnp.where(x > threshold, opened, closed)


def assert_alike(ours, theirs, *operands):
    """The same value, tangent and cotangents."""

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def both(*operands):
        results = []
        for function in (ours, theirs):
            value, pull = jax.vjp(function, *operands)
            results.append((value, pull(jnp.cos(jnp.arange(value.size)).reshape(value.shape))))
        return results

    one, other = both(*operands)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), one, other)


def draw(*shapes) -> tuple:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


both_variants = pytest.mark.parametrize("variant", ["floor", "double"])


@both_variants
def test_activation(rows, variant):
    x, threshold = draw((6, 7), (7,))
    act = functools.partial(jaxtrelu.thresholded_relu, variant=variant)
    assert_alike(act, functools.partial(written, variant=variant), x, threshold)
    tangents = draw((6, 7), (7,))
    pushed = jax.jvp(act, (x, threshold), tangents)[1]
    expected = jax.jvp(functools.partial(written, variant=variant), (x, threshold), tangents)[1]
    np.testing.assert_allclose(pushed, expected, rtol=1e-6, atol=1e-6)


@both_variants
def test_calculus(rows, variant):
    x, threshold = draw((6, 7), (7,))

    def area(x):
        return jaxtrelu.antiderivative(x, threshold, variant=variant)

    value, slope = jax.jvp(area, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(slope, written(x, threshold, variant), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(area(threshold), 0 * threshold)
    on = x + 2.0**-6
    grown = jnp.where((x > threshold) == (on > threshold), area(on) - value, 2.0**-6 * slope)
    np.testing.assert_allclose(grown, 2.0**-6 * slope, atol=1e-3)
    opened = {"floor": 1, "double": 2}[variant]
    np.testing.assert_array_equal(
        jaxtrelu.derivative(x, threshold, variant=variant), opened * (x > threshold)
    )


def test_surrogates(rows):
    x, threshold = draw((6, 7), (7,))
    rectangle, triangle = Rectangle(1.0), Triangle(1.0)

    def of(variant, surrogate):
        act = functools.partial(jaxtrelu.thresholded_relu, variant=variant, surrogate=surrogate)
        return jax.grad(lambda x, t: act(x, t).sum(), (0, 1))(x, threshold)

    dx, dt = of("floor", rectangle)  # the height of its jump is minus the threshold
    density = rectangle.density(x - threshold)
    np.testing.assert_array_equal(dx, (x > threshold).astype(x.dtype))
    expected = jnp.sum(2.0 * (x <= threshold) + threshold * density, 0)
    np.testing.assert_allclose(dt, expected, rtol=1e-5, atol=1e-5)
    dx, dt = of("double", triangle)
    smooth = 2 * triangle.cumulative(x - threshold)
    np.testing.assert_allclose(dx, smooth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dt, -smooth.sum(0), rtol=1e-5, atol=1e-5)


@both_variants
@pytest.mark.parametrize("lead", [(), (5,)], ids=["one per column", "one per element"])
def test_linear(rows, variant, lead):
    x, w, b, threshold = draw((5, 4), (4, 7), (7,), (*lead, 7))
    assert_alike(
        lambda x, w, b, t: jaxtrelu.thresholded_linear(x, w, t, b=b, variant=variant),
        lambda x, w, b, t: written(x @ w + b, t, variant),
        *(x, w, b, threshold),
    )


def test_glu(rows):
    gate, up, threshold = draw((5, 7), (5, 7), (7,))
    assert_alike(
        lambda gate, up, t: jaxtrelu.thresholded_glu(gate, up, t, variant="double"),
        lambda gate, up, t: written(gate, t, "double") * up,
        *(gate, up, threshold),
    )


@pytest.mark.parametrize("product", [jaxtrelu.sparse_mlp, jaxtrelu.compact_mlp])
def test_two_layer_products(rows, product):
    x, w_in, w_out, threshold = draw((5, 4), (7, 4), (7, 3), (7,))
    assert_alike(
        lambda x, w_in, w_out, t: product(x, w_in, w_out, t, variant="double"),
        lambda x, w_in, w_out, t: written(x @ w_in.T, t, "double") @ w_out,
        *(x, w_in, w_out, threshold),
    )


def test_gated_product(rows):
    x, w_gate, w_up, w_out, threshold = draw((5, 4), (7, 4), (7, 4), (7, 3), (7,))
    assert_alike(
        lambda *operands: jaxtrelu.gated_mlp(*operands, variant="double"),
        lambda x, w_gate, w_up, w_out, t: (
            (written(x @ w_gate.T, t, "double") * (x @ w_up.T)) @ w_out
        ),
        *(x, w_gate, w_up, w_out, threshold),
    )


def test_products_refuse_a_row_without_zeros(rows):
    x, w = draw((5, 4), (7, 4))
    words = "'floor' has no zeros to skip: it is x where x > threshold, else 2 threshold.*'double'"
    for product in (jaxtrelu.sparse_mlp, jaxtrelu.compact_mlp):
        with pytest.raises(ValueError, match=words):
            product(x, w, w, variant="floor")
    with pytest.raises(ValueError, match=words):
        jaxtrelu.gated_mlp(x, w, w, w, variant="floor")
    with pytest.raises(ValueError, match=words):
        jaxtrelu.thresholded_glu(x, x, variant="floor")


@both_variants
def test_layers(rows, variant):
    from flax import nnx

    (x,) = draw((5, 7))
    expected = written(x, 0.5, variant)
    layers = [
        jaxtrelu.nnx.ThresholdedReLU(0.5, variant=variant),
        functools.partial(jaxtrelu.linen.ThresholdedReLU(0.5, variant=variant).apply, {}),
    ]
    if VARIANTS[variant].has_zeros:
        block = jaxtrelu.nnx.CompactMLP(7, 9, threshold=0.5, variant=variant, rngs=nnx.Rngs(0))
        dense = written(x @ block.w_in[...].T, 0.5, variant) @ block.w_out[...]
        np.testing.assert_allclose(block(x), dense, rtol=1e-5, atol=1e-5)
    for layer in layers:
        np.testing.assert_array_equal(layer(x), expected)


# back ends


def logged_back_end(log, wins):
    """The XLA forms, and a log of which was traced."""

    def kernel(name, xla):
        def run(*operands, **params):
            log.append(name)
            return xla(*operands, **params)

        return Kernel(run, wins=lambda avals, **params: wins)

    kernels = {name: kernel(name, xla) for name, xla in lowering.XLA_FORMS.items()}
    return BackEnd(name="logged", platform="cpu", dtypes=("float32",), kernels=kernels)


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, thrown away after the test."""
    monkeypatch.setattr(lowering, "BACK_ENDS", dict(lowering.BACK_ENDS))


def gradients_of_both(x, **options):
    """The gradients of the activation and of the linear layer, each in a program of its own."""

    def act(x):
        return jaxtrelu.thresholded_relu(x, 0.5, **options).sum()

    def layer(x):
        return jaxtrelu.thresholded_linear(x, jnp.eye(x.shape[1]), 0.5, **options).sum()

    return [jax.jit(jax.grad(f))(x) for f in (act, layer)]


EVERY = {
    *("thresholded_relu", "thresholded_gate"),
    *("thresholded_linear", "thresholded_linear_gradient"),
}


@pytest.mark.parametrize(
    ("wins", "options", "computed"),
    [
        (False, {"implementation": "logged"}, EVERY),
        (True, {}, EVERY),
        (False, {}, set()),
        (True, {"implementation": "xla"}, set()),
    ],
    ids=["by name", "by default", "not by default", "another by name"],
)
def test_a_back_end_is_one_object(registry, wins, options, computed):
    log: list[str] = []
    register_back_end(logged_back_end(log, wins))
    assert lowering.implementations()[-1] == "logged"
    (x,) = draw((3, 5))
    for gradient in gradients_of_both(x, **options):
        np.testing.assert_array_equal(gradient, (x > 0.5).astype(x.dtype))
    assert set(log) == computed


def test_a_back_end_says_what_it_cannot_do(registry):
    register_back_end(logged_back_end([], wins=True))
    x = jnp.ones((3, 5), jnp.float16)
    with pytest.raises(NotImplementedError, match=r"'logged' cannot.*float16 is none of float32"):
        jaxtrelu.thresholded_relu(x, implementation="logged")
    assert jaxtrelu.thresholded_relu(x, 0.5).dtype == jnp.float16  # by default XLA steps in
    with pytest.raises(ValueError, match="there is a back end 'logged' already"):
        register_back_end(logged_back_end([], wins=True))


def test_a_back_end_that_is_gone_is_unknown():
    with pytest.raises(ValueError, match="`implementation` should be None or one of 'xla', "):
        jaxtrelu.thresholded_relu(jnp.ones(3), implementation="logged")
