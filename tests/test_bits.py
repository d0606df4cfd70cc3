"""Index operations on packed gates, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrelu import bits

WIDTHS = [1, 5, 31, 32, 33, 64, 100, 600, 2100]
MASKS = st.tuples(
    st.integers(0, 2**31), st.sampled_from([0, 1, 3]), st.sampled_from(WIDTHS),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)  # fmt: skip


def _mask(seed, rows, width, density):
    return np.random.default_rng(seed).random((rows, width)) < density


@settings(max_examples=12, deadline=None)
@given(MASKS)
def test_against_numpy(case):
    mask = _mask(*case)
    rows, width = mask.shape
    words = bits.pack(jnp.asarray(mask))
    assert words.shape == (rows, -(-width // 32)) and words.dtype == jnp.uint32
    np.testing.assert_array_equal(bits.unpack(words, width), mask)
    np.testing.assert_array_equal(bits.count(words), mask.sum(1))
    np.testing.assert_array_equal(bits.unpack(bits.transpose(words, width), rows), mask.T)
    places = jnp.broadcast_to(jnp.arange(width + 1), (rows, width + 1))
    before = np.concatenate([np.zeros((rows, 1), int), mask.cumsum(1)], axis=1)
    np.testing.assert_array_equal(bits.rank(words, places), before)
    values = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    indices, found, counts = bits.compact(words, width + 2, jnp.asarray(values))
    for row in range(rows):
        there = np.flatnonzero(mask[row])
        np.testing.assert_array_equal(indices[row, : there.size], there)
        assert (np.asarray(indices[row, there.size :]) == words.shape[1] * 32).all()
        np.testing.assert_array_equal(found[row, : there.size], values[row, there])
    np.testing.assert_array_equal(counts, mask.sum(1))
    np.testing.assert_array_equal(bits.expand(indices, found, width), np.where(mask, values, 0))


def test_rank_inverts_select():
    words = bits.pack(jnp.asarray(_mask(7, 4, 200, 0.2)))
    k = jnp.broadcast_to(jnp.arange(20), (4, 20))
    np.testing.assert_array_equal(bits.rank(words, bits.select(words, k)), k)


def test_select_takes_any_k_in_any_order():
    words = bits.pack(jnp.ones((3, 1100), bool))
    k = jnp.array([[1099, 0, -1, 1100, 513, 512, -(2**31), 2**31 - 1]])
    past = words.shape[1] * 32
    np.testing.assert_array_equal(
        bits.select(words, k), [[1099, 0, past, past, 513, 512, past, past]] * 3
    )
    assert bits.select(jnp.zeros((2, 0), jnp.uint32), k[:1]).tolist() == [[0] * 8] * 2


def test_counts_are_exact_where_the_lists_are_too_short():
    mask = jnp.ones((2, 40), bool)
    indices, _, counts = bits.compact(bits.pack(mask), 3)
    np.testing.assert_array_equal(indices, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(counts, [40, 40])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.bool_])
def test_values_of_every_dtype(dtype):
    values = jnp.arange(40).astype(dtype)
    _, found, _ = bits.compact(bits.pack(jnp.arange(40) % 3 == 0), 20, values)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[:14], values[::3])
    np.testing.assert_array_equal(found[14:], jnp.zeros(6, dtype))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,)])
def test_vmap_and_leading_shapes(lead):
    mask = np.random.default_rng(1).random((*lead, 70)) < 0.3
    words = bits.pack(jnp.asarray(mask))

    def every(w):
        return bits.count(w), bits.unpack(w, 70), *bits.compact(w, 30)[::2]

    together = jax.jit(every)(words)
    mapped = every
    for _ in lead:
        mapped = jax.vmap(mapped)
    for one, other in zip(together, mapped(words), strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_say_what_to_pass():
    with pytest.raises(TypeError, match=r"uint32 array .* as jaxtrelu\.bits\.pack returns it"):
        bits.count(jnp.zeros(3))
    with pytest.raises(ValueError, match="at least one axis"):
        bits.pack(True)
    with pytest.raises(ValueError, match="between 0 and 32"):
        bits.unpack(jnp.zeros(1, jnp.uint32), 33)
    with pytest.raises(ValueError, match=r"one shape, but have \(2,\) and \(3,\)"):
        bits.expand(jnp.zeros(2, jnp.int32), jnp.zeros(3), 4)
