"""Random compositions of transformations, against the float64 oracle.

`make test` takes some, `make test-slow` a few hundred, `make nightly` ten thousand: JAXTRELU_FUZZ
is their number, one in twenty of which is of blocks. A failure prints the call, the composition and
the seed, which run again as they were.
"""

import os

import compositions
import hypothesis
import hypothesis.strategies as st
import jax
import pytest
from cases import examples

COUNT = int(os.environ.get("JAXTRELU_FUZZ", 0))
_done = 0


def _settings(count: int, of_ten_thousand: int):
    """`count` as `cases.examples` takes it, or the share of what JAXTRELU_FUZZ asks for."""
    if not COUNT:
        return examples(count)
    return hypothesis.settings(max_examples=max(1, COUNT * of_ten_thousand // 10_000))


def _assert_agrees(call, composition, seed):
    global _done
    # What is refused of x + t as well: by XLA an empty batch of a sharded computation under grad,
    # by JAX a conditional on what is batched inside of a shard_map.
    kinds = {*composition.inner, *composition.outer}
    hypothesis.assume("shard_map" not in kinds or call.operands[0].size)
    hypothesis.assume(not {"shard_map", "vmap", "cond"} <= kinds)
    _done += 1
    if _done % 300 == 0:
        jax.clear_caches()  # nothing is compiled twice
    hypothesis.note(f"{call.name}, {[o.shape for o in call.operands]}, {composition}, seed {seed}")
    with jax.enable_x64(call.dtype == "float64"):
        compositions.run(call, composition, seed)


SEEDS = st.integers(0, 2**32 - 1)


@_settings(240, 9_500)
@hypothesis.given(compositions.activations(), compositions.compositions(compositions.EVERY), SEEDS)
def test_activations(call, composition, seed):
    _assert_agrees(call, composition, seed)


@pytest.mark.slow
@_settings(6, 500)
@hypothesis.given(compositions.blocks(), compositions.compositions(compositions.REVERSE), SEEDS)
def test_blocks(call, composition, seed):
    _assert_agrees(call, composition, seed)


def test_a_wrong_function_would_be_found():
    # Found is enough: to look for the smallest example compiles a hundred programs.
    @hypothesis.settings(max_examples=50, phases=[hypothesis.Phase.generate])
    @hypothesis.given(compositions.activations(), SEEDS)
    def run(call, seed):
        wrong = lambda x, t: call.function(x + 1e-3, t)  # noqa: E731
        plain = compositions.Composition((), "value", (), "plain")
        with jax.enable_x64(call.dtype == "float64"):
            compositions.run(compositions.dataclasses.replace(call, function=wrong), plain, seed)

    with pytest.raises(AssertionError):
        run()
