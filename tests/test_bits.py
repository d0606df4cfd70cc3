"""Index operations on packed gates, against NumPy.

Step by step each of them is dozens of small programs, so most tests run them as one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

from jaxtrelu import bits

#: Few, since every one is compiled: below, at and past a word, and past a block of the search.
SHAPES = [(0, 5), (3, 1), (1, 32), (3, 33), (3, 2100)]
MASKS = st.tuples(
    st.integers(0, 2**31), st.sampled_from(SHAPES), st.sampled_from([0.0, 0.05, 0.5, 1.0])
)


def _mask(seed, shape, density):
    return np.random.default_rng(seed).random(shape) < density


@jax.jit
def _all_operations(mask, values):
    """Of every operation the result, by name: one program a shape."""
    rows, width = mask.shape
    words = bits.pack(mask)
    places = jnp.broadcast_to(jnp.arange(width + 1), (rows, width + 1))
    indices, found, counts = bits.compact(words, width + 2, values)
    return {
        "words": words,
        "unpack": bits.unpack(words, width),
        "count": bits.count(words),
        "transpose": bits.unpack(bits.transpose(words, width), rows),
        "rank": bits.rank(words, places),
        "indices": indices,
        "found": found,
        "counts": counts,
        "expand": bits.expand(indices, found, width),
    }


@examples(30)
@given(MASKS)
def test_against_numpy(case):
    mask = _mask(*case)
    rows, width = mask.shape
    values = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    got = jax.tree.map(np.asarray, _all_operations(mask, values))
    assert got["words"].shape == (rows, -(-width // 32)) and got["words"].dtype == np.uint32
    np.testing.assert_array_equal(got["unpack"], mask)
    np.testing.assert_array_equal(got["count"], mask.sum(1))
    np.testing.assert_array_equal(got["transpose"], mask.T)
    before = np.concatenate([np.zeros((rows, 1), int), mask.cumsum(1)], axis=1)
    np.testing.assert_array_equal(got["rank"], before)
    for row in range(rows):
        there = np.flatnonzero(mask[row])
        np.testing.assert_array_equal(got["indices"][row, : there.size], there)
        assert (got["indices"][row, there.size :] == got["words"].shape[1] * 32).all()
        np.testing.assert_array_equal(got["found"][row, : there.size], values[row, there])
    np.testing.assert_array_equal(got["counts"], mask.sum(1))
    np.testing.assert_array_equal(got["expand"], np.where(mask, values, 0))


def test_step_by_step():
    """Each operation alone, outside of `jit`."""
    mask = _mask(1, (2, 40), 0.3)
    words = bits.pack(mask)
    np.testing.assert_array_equal(bits.unpack(words, 40), mask)
    np.testing.assert_array_equal(bits.count(words), mask.sum(1))
    np.testing.assert_array_equal(bits.unpack(bits.transpose(words, 40), 2), mask.T)
    before = bits.rank(words, jnp.array([[17], [17]]))[:, 0]
    np.testing.assert_array_equal(before, mask[:, :17].sum(1))
    indices, ones, counts = bits.compact(words, 40, jnp.ones((2, 40)))
    np.testing.assert_array_equal(counts, mask.sum(1))
    np.testing.assert_array_equal(bits.expand(indices, ones, 40), mask)


def test_rank_inverts_select():
    words = bits.pack(jnp.asarray(_mask(7, (4, 200), 0.2)))
    k = jnp.broadcast_to(jnp.arange(20), (4, 20))
    back = jax.jit(lambda words, k: bits.rank(words, bits.select(words, k)))(words, k)
    np.testing.assert_array_equal(back, k)


def test_select_takes_any_k_in_any_order():
    select = jax.jit(bits.select)
    words = bits.pack(jnp.ones((3, 1100), bool))
    k = jnp.array([[1099, 0, -1, 1100, 513, 512, -(2**31), 2**31 - 1]])
    past = words.shape[1] * 32
    np.testing.assert_array_equal(
        select(words, k), [[1099, 0, past, past, 513, 512, past, past]] * 3
    )
    assert select(jnp.zeros((2, 0), jnp.uint32), k[:1]).tolist() == [[0] * 8] * 2


@pytest.mark.parametrize("function", [bits.select, bits.rank])
def test_leading_axes_broadcast(function):
    function = jax.jit(function)
    words = bits.pack(jnp.asarray(_mask(5, (3, 100), 0.3)))
    index = jnp.array([0, 7, 20])
    together = function(words, index)
    assert together.shape == (3, 3)
    for row in range(3):
        np.testing.assert_array_equal(together[row], function(words[row], index))
    np.testing.assert_array_equal(function(words[0], index[None]), together[:1])


@pytest.mark.parametrize(("function", "name"), [(bits.select, "k"), (bits.rank, "index")])
def test_a_single_index_has_an_axis(function, name):
    words = jnp.array([5], jnp.uint32)
    with pytest.raises(ValueError, match=f"`{name}` should have at least one axis, but is a scal"):
        function(words, 1)
    assert jax.eval_shape(function, words, jnp.array([1])).shape == (1,)


def test_transposition_takes_leading_axes():
    mask = _mask(5, (2, 3, 40, 70), 0.3)
    turned = jax.jit(lambda mask: bits.unpack(bits.transpose(bits.pack(mask), 70), 40))(mask)
    np.testing.assert_array_equal(turned, np.swapaxes(mask, -1, -2))


@pytest.mark.parametrize("shape", [(3, 0, 5), (3, 2, 0), (0, 2, 5), (0, 0, 0)], ids=str)
def test_expansion_of_empty_lists_and_to_a_width_of_zero(shape):
    rows, size, width = shape
    expand = jax.jit(bits.expand, static_argnums=2)
    dense = expand(jnp.zeros((rows, size), jnp.int32), jnp.ones((rows, size)), width)
    expected = np.zeros((rows, width))
    if size:
        expected[:, :1] = 1
    np.testing.assert_array_equal(dense, expected)


def test_lists_of_no_length():
    @jax.jit
    def there_and_back(mask):
        indices, values, counts = bits.compact(bits.pack(mask), 0, jnp.ones(mask.shape))
        return bits.expand(indices, values, 5), counts

    dense, counts = there_and_back(np.ones((3, 5), bool))
    assert dense.tolist() == [[0.0] * 5] * 3
    assert counts.tolist() == [5] * 3


def test_counts_are_exact_where_the_lists_are_too_short():
    mask = jnp.ones((2, 40), bool)
    indices, _, counts = jax.jit(lambda mask: bits.compact(bits.pack(mask), 3))(mask)
    np.testing.assert_array_equal(indices, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(counts, [40, 40])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8, jnp.bool_])
def test_values_of_every_dtype(dtype):
    values = jnp.arange(40).astype(dtype)
    mask = np.arange(40) % 3 == 0
    _, found, _ = jax.jit(lambda values: bits.compact(bits.pack(mask), 20, values))(values)
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
    for one, other in zip(together, jax.jit(mapped)(words), strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_say_what_to_pass():
    with pytest.raises(TypeError, match=r"uint32 array .* as jaxtrelu\.bits\.pack returns it"):
        bits.count(jnp.zeros(3))
    with pytest.raises(ValueError, match="at least one axis"):
        bits.pack(True)
    with pytest.raises(ValueError, match="between 0 and 32"):
        bits.unpack(jnp.zeros(1, jnp.uint32), 33)
    with pytest.raises(ValueError, match=r"`width` .* between 0 and 32, .* but is 100"):
        bits.transpose(jnp.zeros((1, 1), jnp.uint32), 100)
    with pytest.raises(ValueError, match=r"should have shape \(\.\.\., rows, w\)"):
        bits.transpose(jnp.zeros(1, jnp.uint32), 3)
    with pytest.raises(ValueError, match="`width` should be at least 0"):
        bits.expand(jnp.zeros(2, jnp.int32), jnp.zeros(2), -1)
    with pytest.raises(ValueError, match=r"one shape, but have \(2,\) and \(3,\)"):
        bits.expand(jnp.zeros(2, jnp.int32), jnp.zeros(3), 4)
    word = jnp.array([5], jnp.uint32)
    for values in (jnp.ones(33), jnp.ones((1, 3)), jnp.ones(0)):
        with pytest.raises(ValueError, match=r"`values` should have shape \(\.\.\., n\) beside"):
            bits.compact(word, 3, values)
    for search, name in ((bits.rank, "index"), (bits.select, "k")):
        with pytest.raises(TypeError, match=f"`{name}` should be integers, but .* dtype float32"):
            search(word, jnp.array([1.0]))
        with pytest.raises(ValueError, match=f"leading axes of `words` and `{name}` should broad"):
            search(jnp.zeros((2, 1), jnp.uint32), jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(TypeError, match="`indices` should be integers"):
        bits.expand(jnp.zeros(2), jnp.zeros(2), 4)
    for call in (bits.unpack, bits.compact, lambda w, n: bits.expand(w.astype(int), w, n)):
        with pytest.raises(TypeError, match=r"whole number.* make it a static argument"):
            jax.jit(call)(word, 3)
        with pytest.raises(ValueError, match=r"should be at least 0, but is -1\.$"):
            call(word, -1)
        with pytest.raises(TypeError, match=r"should be a whole number, but is 1\.5 \(float\)\.$"):
            call(word, 1.5)


def test_indices_outside_are_padding():
    word = np.array([5], np.uint32)
    assert jax.jit(bits.rank)(word, np.array([-7, 99])).tolist() == [0, 2]
    expand = jax.jit(bits.expand, static_argnums=2)
    dense = expand(np.array([-1, 0, 4]), np.array([1.0, 2, 3], np.float32), 4)
    assert dense.tolist() == [2, 0, 0, 0]
    *rest, one = expand(np.array([3, 3, 9]), np.array([1.0, 2, 4], np.float32), 4).tolist()
    assert rest == [0, 0, 0] and one in (1, 2), "not their sum"
