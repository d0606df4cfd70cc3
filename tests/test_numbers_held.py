"""The same bits again and across batches, no second compilation, eight threads, flat memory."""

import concurrent.futures
import functools
import gc
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public_calls import CALLS
from runs import COMPILED
from test_public import with_gradient

import jaxtrelu
from jaxtrelu import Rectangle


def bits_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


#: A few of the table's in `make test`, and all in `make test-all`.
FEW = ("thresholded_relu", "sparse_mlp", "bits.compact")
every_call = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in CALLS]
)


@functools.cache
def compiled(name):
    return jax.jit(with_gradient(CALLS[name]))


@every_call
def test_the_same_bits_twice_and_in_eight_threads(name):
    call, run = CALLS[name], compiled(name)
    first = bits_of(run(*call.operands))
    assert bits_of(run(*call.operands)) == first
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: bits_of(run(*call.operands)), range(32)))
    assert all(result == first for result in results)


@every_call
def test_other_values_compile_nothing(name):
    call, run = CALLS[name], compiled(name)
    run(*call.operands)
    before = run._cache_size()
    others = [o * 2 if o.dtype.kind == "f" else o for o in map(np.asarray, call.operands)]
    run(*others)
    assert run._cache_size() == before


ROWS = {
    "thresholded_relu": lambda x: jaxtrelu.thresholded_relu(x, 0.25),
    "hard": lambda x: jaxtrelu.thresholded_relu(x, jnp.linspace(-1, 1, 37), variant="hard"),
    "gradient": jax.grad(lambda x: (jaxtrelu.thresholded_relu(x, 0.25) ** 3).sum()),
    "antiderivative": lambda x: jaxtrelu.antiderivative(x, 0.25),
    "glu": lambda x: jaxtrelu.thresholded_glu(x, 2 * x, 0.25),
    "estimated": jax.grad(
        lambda x: jaxtrelu.jump_relu(x, 0.25, surrogate=Rectangle(1.0, to_input=True)).sum()
    ),
    "words": lambda x: jaxtrelu.bits.pack(x > 0.25),
    "compact": lambda x: jaxtrelu.bits.compact(jaxtrelu.bits.pack(x > 0.25), 9, x)[:2],
}


def test_rows_have_the_same_bits_in_any_batch():
    x = np.random.default_rng(0).normal(size=(64, 37)).astype(np.float32)
    run = jax.jit(lambda x: {name: f(x) for name, f in ROWS.items()})
    whole = run(x)
    for parts in ([1, 63], [7, 25, 32]):
        ends = np.cumsum(parts)
        pieces = [run(piece) for piece in np.split(x, ends[:-1])]
        joined = jax.tree.map(lambda *p: np.concatenate(p), *pieces)
        assert bits_of(joined) == bits_of(whole)


def test_numbers_as_thresholds_compile_nothing_step_by_step():
    """Outside of `jit`, where each operation is a program: another number is another value."""
    x = jnp.ones((3, 7))

    def steps(threshold):
        y = jaxtrelu.thresholded_relu(x, threshold)
        y = jaxtrelu.jump_relu(y, threshold, surrogate=Rectangle(0.5))
        gradient = jax.grad(lambda t: jaxtrelu.thresholded_relu(x, t).sum())(threshold)
        return y, gradient

    steps(0.25)
    before = len(COMPILED)
    for threshold in (0.5, 0.75, -1.0):
        steps(threshold)
    assert len(COMPILED) == before


def megabytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("products", ["loops", "dense"])
def test_memory_is_flat_over_ten_thousand_steps(products):
    rng = np.random.default_rng(0)
    parameters = {
        "w_in": jnp.asarray(rng.normal(size=(64, 16)), jnp.float32),
        "w_out": jnp.asarray(rng.normal(size=(64, 16)), jnp.float32),
        "threshold": jnp.full(64, 4.0),
    }
    optimizer = optax.adam(1e-3)
    state = optimizer.init(parameters)
    batches = rng.normal(size=(16, 32, 16)).astype(np.float32)

    # Run so often that it is worth its compilation.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(parameters, state, x):
        def loss(p):
            y = jaxtrelu.sparse_mlp(
                x, p["w_in"], p["w_out"], p["threshold"], variant="hard",
                surrogate=Rectangle(0.5), products=products,
            )  # fmt: skip
            return jnp.mean((y - x) ** 2)

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value

    seen = {}
    for number in range(1, 10_001):
        parameters, state, value = step(parameters, state, batches[number % 16])
        if number in (1_000, 10_000):
            assert np.isfinite(float(value))
            seen[number] = megabytes(), len(jax.live_arrays())
    assert seen[10_000][1] == seen[1_000][1]
    assert seen[10_000][0] - seen[1_000][0] < 8
