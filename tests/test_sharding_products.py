"""Products on eight devices: the collectives of the dense program, read in the compiled one."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxtrelu
from jaxtrelu import sae
from jaxtrelu.sae import Settings, initial_state, train_step
from jaxtrelu.sparse import compact_mlp, entry_sum, prepare_screen, sparse_mlp_vjp

ROWS, WIDTH, OUT = 32, 16, 24
#: A part of an eighth has 50 features: no multiple of 32.
FEATURES = 400
#: Over which axes of the mesh examples and features are sharded.
SHARDINGS = {"both": ("b", "m"), "batch": (("b", "m"), None), "features": (None, ("b", "m"))}
KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "u8": 1, "s8": 1}


def collectives(program) -> dict[str, tuple[int, int]]:
    """The collectives of a compiled program: (number, bytes) of each kind."""
    number, size = collections.Counter(), collections.Counter()
    found = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
    for types, kind in found.findall(program.as_text()):
        number[kind] += 1
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            size[kind] += BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
    return {kind: (number[kind], size[kind]) for kind in number}


def test_collectives_are_counted():
    mesh = jax.make_mesh((8,), ("b",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("b")))
    whole = jax.jit(lambda x: x + 1, out_shardings=NamedSharding(mesh, P()))
    assert collectives(whole.lower(x).compile()) == {"all-gather": (1, 16 * 4 * 4)}
    assert collectives(jax.jit(jnp.sum).lower(x).compile()) == {"all-reduce": (1, 4)}


def operands(features=FEATURES):
    """x, two first weights, w_out, threshold, two first biases, b_out: 1 in 30 is open."""
    rng = np.random.default_rng(0)
    shapes = [(ROWS, WIDTH), *2 * [(features, WIDTH)], (features, OUT), *3 * [(features,)], (OUT,)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[1] /= WIDTH**0.5
    arrays[5:7] = [array / 10 for array in arrays[5:7]]
    arrays[4] = np.full(features, 1.8, np.float32)
    return arrays


SPECS = ("b", "m", "m", "m", "m", "m", "m", None)  # of what the first dimension is


def placed(arrays, mesh, sharding):
    """The operands, sharded."""
    axes = dict(zip("bm", sharding, strict=True)) | {None: None}
    specs = [P(axes[first]) for first in SPECS]
    return [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]


def _dense(z, t):
    return jnp.where(z > t, z - t, 0)


def _dense_mlp(x, w, _, w_out, t, b, __, b_out):
    return _dense(x @ w.T + b, t) @ w_out + b_out


#: Ours and the dense program, of `operands`.
PRODUCTS = {
    "sparse_mlp": (
        lambda x, w, _, w_out, t, b, __, b_out: jaxtrelu.sparse_mlp(
            x, w, w_out, t, b_in=b, b_out=b_out
        ),
        _dense_mlp,
    ),
    "screened": (
        lambda x, w, _, w_out, t, b, __, b_out: jaxtrelu.sparse_mlp(
            x, w, w_out, t, b_in=b, b_out=b_out, screen=True
        ),
        _dense_mlp,
    ),
    "compact_mlp": (
        lambda x, w, _, w_out, t, b, __, b_out: compact_mlp(x, w, w_out, t, b_in=b, b_out=b_out),
        _dense_mlp,
    ),
    "gated_mlp": (
        lambda x, w, up, w_out, t, b, b_up, b_out: jaxtrelu.gated_mlp(
            x, w, up, w_out, t, b_gate=b, b_up=b_up, b_out=b_out
        ),
        lambda x, w, up, w_out, t, b, b_up, b_out: (
            (_dense(x @ w.T + b, t) * (x @ up.T + b_up)) @ w_out + b_out
        ),
    ),
    "thresholded_linear": (
        lambda x, w, _, __, t, b, *___: jaxtrelu.thresholded_linear(x, w.T, t, b=b),
        lambda x, w, _, __, t, b, *___: _dense(x @ w.T + b, t),
    ),
}
EVERY = [(name, sharding) for name in PRODUCTS for sharding in SHARDINGS]
QUICK = {("gated_mlp", "both"), ("thresholded_linear", "both")}
#: Every product under some sharding, and every sharding.
SOME = [
    ("sparse_mlp", "both"), ("sparse_mlp", "features"), ("screened", "batch"),
    ("compact_mlp", "features"), ("gated_mlp", "batch"), ("thresholded_linear", "both"),
]  # fmt: skip


def with_gradients(function):
    """The value and the gradients in all operands."""

    def both(*args):
        y, pullback = jax.vjp(function, *args)
        return y, pullback(y)

    return jax.jit(both)


@functools.cache
def expected(name):
    return with_gradients(PRODUCTS[name][1])(*operands())


def assert_close(ours, theirs):
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=1e-3, atol=1e-3)


@functools.cache
def of_dense(name, sharding, wrap):
    """The collectives of the dense program on a mesh of automatic axes."""
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    args = placed(operands(), mesh, SHARDINGS[sharding])
    return collectives(wrap(PRODUCTS[name][1]).lower(*args).compile())


def no_more(ours, dense):
    """As many of each kind, and no more bytes."""
    assert {kind: n for kind, (n, _) in ours.items()} == {k: n for k, (n, _) in dense.items()}
    assert all(size <= dense[kind][1] for kind, (_, size) in ours.items()), (ours, dense)


@pytest.mark.parametrize(("name", "sharding"), quick(EVERY, QUICK))
def test_automatic_sharding(name, sharding):
    """Of the values alone, where both are sharded, and of values and gradients in one program."""
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    args = placed(operands(), mesh, SHARDINGS[sharding])
    for wrap in (jax.jit, with_gradients) if sharding == "both" else (with_gradients,):
        ours = wrap(PRODUCTS[name][0]).lower(*args).compile()
        no_more(collectives(ours), of_dense(name, sharding, wrap))
    assert_close(ours(*args), expected(name))


@pytest.mark.parametrize(("name", "sharding"), quick(SOME, {("sparse_mlp", "both")}))
def test_explicit_meshes(name, sharding):
    explicit = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Explicit,) * 2)
    args = placed(operands(), explicit, SHARDINGS[sharding])
    with jax.set_mesh(explicit):
        ours = with_gradients(PRODUCTS[name][0]).lower(*args).compile()
        y, gradients = ours(*args)
    no_more(collectives(ours), of_dense(name, sharding, with_gradients))
    assert_close((y, gradients), expected(name))
    for gradient, arg in zip(gradients, args, strict=True):
        assert jax.typeof(gradient).sharding.spec == jax.typeof(arg).sharding.spec


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_training_step_of_an_autoencoder(sharding):
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    examples, features = SHARDINGS[sharding]
    m = 1200  # parts of 150
    x = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    recipe = dataclasses.replace(sae.gemma_scope(), batch_size=ROWS)

    def compiled(sparse):
        settings = Settings(m, 100, recipe=recipe, target_l0=8.0, sparse=sparse)
        assert settings.visits_entries_only() == sparse
        state = jax.tree.map(
            lambda array: jax.device_put(
                array, NamedSharding(mesh, P(*(features if n == m else None for n in array.shape)))
            ),
            initial_state(settings, x),
        )
        batch = jax.device_put(x, NamedSharding(mesh, P(examples)))
        step = jax.jit(train_step, static_argnames="settings", donate_argnames="state")
        program = step.lower(state, batch, 1.0, settings).compile()
        return program, program(state, batch, 1.0)

    (ours, after), (dense, expected) = compiled(True), compiled(False)
    no_more(collectives(ours), collectives(dense))
    assert_close(after[0].weights, expected[0].weights)
    assert_close(after[1], expected[1])


# what differs from device to device


def _record(*args):
    x, w, _, w_out, t, b, *_ = args

    def penalised(x, w, t, b):
        y, activity = jaxtrelu.sparse_mlp(x, w, w_out, t, b_in=b, with_activity=True, capacity=32)
        dense = functools.partial(jaxtrelu.thresholded_relu, x @ w.T + b, t)
        penalty = entry_sum(jnp.tanh, activity, dense)
        return jnp.sum(y * y) + penalty + jnp.sum(activity.l0), activity

    return jax.value_and_grad(penalised, (0, 1, 2, 3), has_aux=True)(x, w, t, b)


@pytest.mark.parametrize("full", [False, True], ids=["sparse", "one device overflows"])
def test_the_record(full):
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    arrays = operands()
    if full:  # all the features of the last quarter, for the first half of the examples
        arrays[0][: ROWS // 2] = np.abs(arrays[0][: ROWS // 2])
        arrays[0][ROWS // 2 :] = -np.abs(arrays[0][ROWS // 2 :])
        arrays[1][300:] = 1.0
    x, w, _, w_out, t, b, *_ = arrays
    a = _dense(x @ w.T + b, t)

    def dense(x, w, t, b):
        a = _dense(x @ w.T + b, t)
        return jnp.sum((a @ w_out) ** 2) + jnp.sum(jnp.tanh(a))

    gradients = jax.grad(dense, (0, 1, 2, 3))(x, w, t, b)
    (value, activity), ours = jax.jit(_record)(*placed(arrays, mesh, ("b", "m")))
    assert_close((value, *ours), (dense(x, w, t, b) + jnp.sum(a > 0), *gradients))
    assert bool(activity.overflow) == full
    np.testing.assert_array_equal(activity.counts, (a > 0).sum(1))
    np.testing.assert_array_equal(activity.l0, (a > 0).sum(1))
    np.testing.assert_array_equal(activity.fired, (a > 0).sum(0))
    used = np.asarray(activity.features) < FEATURES
    found = np.zeros((ROWS, FEATURES), np.float32)
    found[np.asarray(activity.rows)[used], np.asarray(activity.features)[used]] = np.asarray(
        activity.values
    )[used]
    np.testing.assert_allclose(found, np.zeros_like(found) if full else a, rtol=1e-4, atol=1e-5)
    assert not np.asarray(activity.values)[~used].any()


@pytest.mark.parametrize(
    ("shape", "rows", "features"),
    [
        pytest.param((6,), 30, 36, id="6 of 8 devices"),
        pytest.param((3,), 33, 48, marks=pytest.mark.slow, id="3 of 8 devices"),
    ],
)
@pytest.mark.parametrize("of", ["features", pytest.param("examples", marks=pytest.mark.slow)])
def test_devices_that_do_not_divide(shape, rows, features, of):
    """Correct, if slower: what cannot be divided equally is whole everywhere."""
    mesh = jax.make_mesh(
        shape, ("m",), axis_types=(AxisType.Auto,), devices=jax.devices()[: shape[0]]
    )
    arrays = operands(features)
    arrays[0] = np.resize(arrays[0], (rows, WIDTH))
    args = placed(arrays, mesh, ("m", None) if of == "examples" else (None, "m"))
    ours, theirs = (with_gradients(f) for f in (PRODUCTS["sparse_mlp"][0], _dense_mlp))
    assert_close(ours(*args), theirs(*arrays))


def test_decoding():
    """Up to eight examples, whose rounds of units each device makes for its own."""
    mesh = jax.make_mesh((8,), ("m",), axis_types=(AxisType.Auto,))
    arrays = operands()
    arrays[0] = arrays[0][:2]
    ours, dense = PRODUCTS["gated_mlp"]
    args = placed(arrays, mesh, (None, "m"))
    program = jax.jit(ours).lower(*args).compile()
    no_more(collectives(program), collectives(jax.jit(dense).lower(*args).compile()))
    assert_close(program(*args), dense(*arrays))


def test_a_prepared_screen_is_sharded_as_its_weights():
    mesh = jax.make_mesh((8,), ("m",), axis_types=(AxisType.Auto,))
    arrays = operands()
    x, w, _, w_out, t, b, _, b_out = placed(arrays, mesh, (None, "m"))
    screen = prepare_screen(w, "bfloat16")
    product = jax.jit(functools.partial(jaxtrelu.sparse_mlp, b_in=b, b_out=b_out))
    program = product.lower(x, w, w_out, t, screen=screen).compile()
    assert collectives(program) == {"all-reduce": (1, ROWS * OUT * 4)}
    assert_close(program(x, w, w_out, t, screen=screen), _dense_mlp(*arrays))


# shard_map


MANUAL = [
    pytest.param(None, id="fully manual", marks=pytest.mark.slow),
    pytest.param({"b"}, id="partially manual"),
]


@pytest.mark.parametrize("names", MANUAL)
@pytest.mark.parametrize(
    "name",
    ["sparse_mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in list(PRODUCTS)[2:])],
)
def test_shard_map_over_examples(name, names):
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(
        PRODUCTS[name][0],
        mesh=mesh,
        in_specs=(P("b"), *(P(),) * 7),
        out_specs=P("b"),
        **({} if names is None else {"axis_names": names}),
    )
    assert_close(with_gradients(mapped)(*operands()), expected(name))


@pytest.mark.parametrize("names", MANUAL)
def test_the_pullback_in_a_shard_map(names):
    mesh = jax.make_mesh((2, 4), ("b", "m"), axis_types=(AxisType.Auto,) * 2)
    x, w, _, w_out, t, *_ = operands()

    def local(x, w, w_out, t):
        y, pullback = sparse_mlp_vjp(x, w, w_out, t)
        return pullback(y).x

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("b"), P(), P(), P()),
        out_specs=P("b"),
        **({} if names is None else {"axis_names": names}),
    )
    dense = jax.grad(lambda x: jnp.sum((_dense(x @ w.T, t) @ w_out) ** 2) / 2)
    assert_close(jax.jit(mapped)(x, w, w_out, t), dense(x))


# sizes


def test_a_latent_that_cannot_be_counted_is_refused():
    x, w = (jax.ShapeDtypeStruct((n, 1), "float32") for n in (2**19, 2**16))
    with pytest.raises(ValueError, match=r"524,288 examples and 65,536 features.* 9 devices"):
        jax.eval_shape(jaxtrelu.sparse_mlp, x, w, w)


def test_a_latent_of_more_than_two_thousand_million_elements_is_traced():
    """Its positions do not fit into int32."""
    x, w = (jax.ShapeDtypeStruct((n, 1), "float32") for n in (2**15, 2**16))
    for product in (jaxtrelu.sparse_mlp, compact_mlp):
        gradient = jax.grad(lambda x, w, product=product: jnp.sum(product(x, w, w)))
        assert jax.eval_shape(gradient, x, w).shape == x.shape
