"""shard_map, explicit meshes, automatic partitioning and pmap, on eight virtual devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from cases import SHAPE, Case, assert_close, over_cases
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrelu import Rectangle, Triangle, bits, thresholded_relu

OPTIONS = {
    "shift": {},
    "hard": {"variant": "hard", "surrogate": Rectangle(0.5)},
    "clamp": {"variant": "clamp"},
}
KINDS = ("scalar", "channel", "full")
KEY = jax.random.key(0)


def _square(turn):
    """Of the pairs of options and kind three, in which each of either comes up once."""
    return [(name, KINDS[(i + turn) % 3]) for i, name in enumerate(OPTIONS)]


ALL = [(name, kind) for name in OPTIONS for kind in KINDS]


def _loss(options):
    return lambda x, t: (thresholded_relu(x, t, **options) ** 2).sum()


def _threshold(kind, x):
    shape = {"scalar": (), "channel": x.shape[-1:], "full": x.shape}[kind]
    return jnp.linspace(-0.5, 0.5, int(np.prod(shape))).reshape(shape)


def _assert_same_gradients(actual, options, x, threshold):
    gradient = jax.jit(jax.grad(_loss(options), (0, 1)))
    expected = gradient(np.asarray(x), np.asarray(threshold))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*p, marks=() if p in _square(0) else pytest.mark.slow) for p in ALL],
)
def test_shard_map_with_varying_axes_checked(name, kind):
    options = OPTIONS[name]
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(KEY, (16, 37))
    threshold = _threshold(kind, x)
    mapped = jax.shard_map(
        lambda x, t: thresholded_relu(x, t, **options),
        mesh=mesh,
        in_specs=(P("rows"), P("rows") if kind == "full" else P()),
        out_specs=P("rows"),
    )
    actual = jax.jit(jax.grad(lambda x, t: (mapped(x, t) ** 2).sum(), (0, 1)))(x, threshold)
    _assert_same_gradients(actual, options, x, threshold)

    @jax.jit
    def tangents(x):
        def direct(x):
            return thresholded_relu(x, threshold, **options)

        ones = jnp.ones_like(x)
        return [jax.jvp(f, (x,), (ones,))[1] for f in (lambda x: mapped(x, threshold), direct)]

    np.testing.assert_allclose(*tangents(x))


PLACED = [
    ((16, 64), P("a", None)),
    ((16, 256), P("a", "b")),
    ((16, 40), P("a", "b")),  # parts of 10 columns: no multiple of the packing word
    ((64, 40), P(None, "b")),  # packed along the rows instead
    ((12, 8), P(None, "b")),
    ((64, 24), P(("a", "b"), None)),
    ((4, 8, 6), P("a", "b", None)),
]
#: Each placement with three pairs of options and kind, and, slow, with all of them.
PLACEMENTS = [pytest.param(*p, _square(i), id=f"{p[0]}-{p[1]}") for i, p in enumerate(PLACED)]
PLACEMENTS += [
    pytest.param(*p, ALL, id=f"{p[0]}-{p[1]}, every pair", marks=pytest.mark.slow) for p in PLACED
]


@pytest.mark.parametrize(("shape", "spec", "pairs"), PLACEMENTS)
def test_explicit_mesh(shape, spec, pairs):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, spec)
    x = jax.random.normal(KEY, shape)
    cases = {f"{name}, {kind}": (_loss(OPTIONS[name]), OPTIONS[name], kind) for name, kind in pairs}

    def gradients(x, thresholds, expected_spec=None):
        found = {}
        for name, (loss, options, kind) in cases.items():
            if expected_spec is not None:
                y = thresholded_relu(x, thresholds[kind], **options)
                assert jax.typeof(y).sharding.spec == expected_spec, name
            found[name] = jax.grad(loss, (0, 1))(x, thresholds[kind])
        return found

    thresholds = {kind: _threshold(kind, x) for kind in KINDS}
    expected = jax.jit(gradients)(x, thresholds)
    with jax.set_mesh(mesh):
        placed = thresholds | {"full": jax.device_put(thresholds["full"], sharding)}
        compiled = jax.jit(functools.partial(gradients, expected_spec=spec))
        actual = compiled(jax.device_put(x, sharding), placed)
    for name in cases:
        for a, e in zip(actual[name], expected[name], strict=True):
            np.testing.assert_allclose(
                np.asarray(a), np.asarray(e), rtol=1e-4, atol=1e-5, err_msg=name
            )


def _expect_the_definition(gradients, case: Case):
    """Gradients of the sum in x and in the threshold."""
    _, dx, dt = case.expected()
    assert_close(gradients[0], dx, case)
    assert_close(gradients[1], case.threshold_cotangent(dt), case)


@over_cases
def test_every_case_in_a_shard_map(case):
    mapped = jax.shard_map(
        case.function,
        mesh=runs.mesh_of_rows(SHAPE[0], AxisType.Auto),
        in_specs=(P("rows"), P("rows") if case.kind == "full" else P()),
        out_specs=P("rows"),
    )

    def program(x, threshold):
        # As calls of a compiled function, so that these rules run where the cases run alone.
        value, pullback = jax.vjp(jax.jit(mapped), x, threshold)
        _, tangent = jax.jvp(lambda x: mapped(x, threshold), (x,), (x,))
        return value, pullback(jnp.ones_like(x)), tangent

    value, gradients, tangent = yield program, case.x, jnp.asarray(case.threshold)
    assert_close(value, case.expected()[0], case)
    _expect_the_definition(gradients, case)
    assert_close(tangent, case.expected()[1] * np.asarray(case.x, np.float64), case)


@over_cases(run=runs.on_an_explicit_mesh)
def test_every_case_on_an_explicit_mesh(case):
    def program(x, threshold):
        value, pullback = jax.vjp(jax.jit(case.function), x, threshold)
        assert jax.typeof(value).sharding.spec == P("rows", None)
        _, tangent = jax.jvp(lambda x: case.function(x, threshold), (x,), (x,))
        return value, pullback(jnp.ones_like(x)), tangent

    value, gradients, tangent = yield program, case.x, jnp.asarray(case.threshold)
    assert jax.typeof(value).sharding.spec == P("rows", None)
    assert_close(value, case.expected()[0], case)
    _expect_the_definition(gradients, case)
    assert_close(tangent, case.expected()[1] * np.asarray(case.x, np.float64), case)


@over_cases(run=runs.row_by_device)
def test_every_case_under_pmap(case):
    def both(x, threshold):
        value, pullback = jax.vjp(case.function, x, threshold)
        return value, *pullback(jnp.ones_like(x))

    value, dx, dt = yield both, case.x, jnp.asarray(case.threshold)
    # One threshold's cotangent from each device, over its own row.
    dt = dt if case.kind == "full" else dt.sum(axis=0)
    assert_close(value, case.expected()[0], case)
    _expect_the_definition((dx, dt), case)


def _collectives(function, *operands) -> list[str]:
    text = jax.jit(function).lower(*operands).compile().as_text()
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    return [name for name in names if f" {name}(" in text or f" {name}-start(" in text]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 256), P("a", None)),
        ((64, 256), P(None, "a")),
        ((64, 100), P("a", None)),
        # Parts that are no multiple of 32: leading axes of any size,
        ((8, 28, 28, 1), P("a")),
        ((8, 100), P("a")),
        ((16, 37), P("a")),
        ((24, 3, 3), P("a")),
        ((32, 5), P("a")),
        ((1000,), P("a")),
        # and last ones of about 100 and more.
        ((64, 800), P(None, "a")),
        ((16, 1000), P(None, "a")),
    ],
    ids=str,
)
def test_automatic_partitioning_adds_no_collective(shape, spec):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jax.random.normal(KEY, shape), NamedSharding(mesh, spec))
    gradient = jax.grad(lambda x, c: (thresholded_relu(x, 0.5) * c).sum())
    assert _collectives(gradient, x, x) == []
    np.testing.assert_array_equal(gradient(x, x), np.where(x > 0.5, x, 0))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("names", ["a", "b"])
def test_partially_manual_shard_map(names, options):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(KEY, (8, 37))
    threshold = _threshold("channel", x)
    mapped = jax.shard_map(
        lambda x, t: thresholded_relu(x, t, **options),
        mesh=mesh,
        in_specs=(P(names), P()),
        out_specs=P(names),
        axis_names={names},
    )
    actual = jax.jit(jax.grad(lambda x, t: (mapped(x, t) ** 2).sum(), (0, 1)))(x, threshold)
    _assert_same_gradients(actual, options, x, threshold)


@pytest.mark.parametrize("surrogate", [Rectangle(0.5), Triangle(0.5)], ids=str)
def test_sharded_threshold_beside_a_replicated_x(surrogate):
    options = {"variant": "hard", "surrogate": dataclasses.replace(surrogate, to_input=True)}
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
    x = jax.random.normal(KEY, (4, 64))
    threshold = _threshold("channel", x)
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in ((x, P()), (threshold, P("a")))
        )
        actual = jax.jit(jax.grad(_loss(options), (0, 1)))(*placed)
    _assert_same_gradients(actual, options, x, threshold)


def test_bits_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Explicit,))
    rng = np.random.default_rng(0)
    mask = rng.random((16, 3, 70)) < 0.3
    values = np.where(mask, rng.random(mask.shape, np.float32), 0)

    def every(mask, values):
        words = bits.pack(mask)
        indices, found, counts = bits.compact(words, 70, values)
        again = bits.expand(indices, found, 70)
        ranks = bits.rank(words, bits.select(words, indices * 0))
        return words, indices, counts, again, ranks, bits.transpose(words, 70)

    expected = every(mask, values)
    np.testing.assert_array_equal(expected[3], values)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("a"))
        actual = jax.jit(every)(*(jax.device_put(a, sharding) for a in (mask, values)))
    for a, e in zip(actual, expected, strict=True):
        assert jax.typeof(a).sharding.spec[0] == "a"
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


def test_pmap():
    x = jax.random.normal(KEY, (8, 5, 7))
    actual = jax.pmap(jax.grad(_loss({}), (0, 1)), in_axes=(0, None))(x, 0.25)
    gradient = jax.jit(jax.grad(_loss({}), (0, 1)))
    for i in range(8):
        dx, dt = gradient(x[i], 0.25)
        np.testing.assert_allclose(actual[0][i], dx, rtol=1e-6)
        np.testing.assert_allclose(actual[1][i], dt, rtol=1e-6)
