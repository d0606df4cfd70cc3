"""Benchmarks compare results before they time, and stop where one is something else."""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich", reason="rich is not installed")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import _harness
import gated_mlp
import sparse_mlp
import synthetic_world

from jaxtrelu import Rectangle, sae

SIZES = {"rows": [1, 3, 16], "width": 24, "hidden": 96, "sparsity": [0.75], "layers": 2}


def case(**peers):
    return _harness.Case("8", "forward", {n: lambda v=v: v for n, v in peers.items()}, "a", "a")


def compared(given):
    return _harness.compared("s", given)


def test_equal_results_are_timed_and_the_difference_reported():
    a = np.linspace(1, 2, 8, dtype=np.float32)
    given = case(a=a, b=a + np.float32(2e-6), nothing=None)
    expected = {"a": 0, "b": pytest.approx(2e-6, rel=0.1), "nothing": None}
    assert compared(given) == expected
    timings = _harness.measure("s", given, seconds=0)
    assert {t.peer: t.difference for t in timings} == expected


def test_nothing_is_timed_of_a_wrong_case():
    calls = []
    peers = {"a": lambda: np.float32([1]), "b": lambda: calls.append(0) or np.float32([2])}
    with pytest.raises(SystemExit, match="WRONG: s, 8, forward: b differs"):
        _harness.measure("s", _harness.Case("8", "forward", peers, "a", "a"), seconds=0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (np.float32([1, 2.001]), "WRONG: s, 8, forward: b differs from the reference by 0.00045"),
        (np.float32([1, np.nan]), "b differs from the reference by nan of its norm"),
        (np.float32([1]), "returns shapes"),
        ((np.float32([1, 2]), np.float32(0)), "returns shapes"),
        (jnp.bfloat16([1, 2.5]), "differs .*, where 0.05 is allowed; nothing was timed"),
    ],
)
def test_another_result_ends_the_benchmark_with_status_1(other, words):
    with pytest.raises(SystemExit, match=words) as stopped:
        compared(case(a=np.float32([1, 2]), b=other))
    assert isinstance(stopped.value.code, str)  # which Python prints, and exits with 1


def test_rounding_is_allowed_by_dtype():
    compared(case(a=np.float32([1, 2]), b=jnp.bfloat16([1, 2.02])))
    with pytest.raises(SystemExit):
        compared(case(a=np.float64([1, 2]), b=np.float64([1, 2 + 1e-7])))


def gated_cases():
    return list(gated_mlp.gated(argparse.Namespace(**SIZES, no_torch=True)))


@pytest.mark.slow
def test_the_gated_products_are_compared_for_every_number_of_rows(monkeypatch):
    differences = [compared(each) for each in gated_cases()]
    assert len(differences) == 6  # cold and warm
    assert all(0 <= d["jaxtrelu"] < 1e-4 and d["gate only"] is None for d in differences)

    def wrong(x, w_gate, w_up, w_out, threshold):
        """Stops before its last units, as a fast path for one row once did."""
        weights = [w[:90] for w in (w_gate, w_up, w_out)]
        return right(x, *weights, threshold)

    right = gated_mlp.fatrelu_mlp
    monkeypatch.setattr(gated_mlp, "fatrelu_mlp", wrong)
    for each in gated_cases():
        with pytest.raises(SystemExit, match="jaxtrelu differs from the reference"):
            compared(each)


def test_what_is_found_is_compared_whatever_its_order(monkeypatch):
    monkeypatch.setattr(sparse_mlp, "BATCH", 8)
    (found,) = sparse_mlp.find(argparse.Namespace(features=[256], l0=8))
    assert compared(found) == dict.fromkeys(found.peers, 0)
    select = found.peers["jaxtrelu.bits"]
    lost = {**found.peers, "jaxtrelu.bits": lambda: select().at[3, 0].set(256)}
    with pytest.raises(SystemExit, match=r"jaxtrelu\.bits differs"):
        compared(dataclasses.replace(found, peers=lost))


def test_updates_are_compared_not_the_weights_around_them(monkeypatch):
    monkeypatch.setattr(sparse_mlp, "WIDTH", 16)
    args = argparse.Namespace(features=[256], l0=8)
    assert all(d < 1e-6 for d in compared(next(iter(sparse_mlp.touched(args)))).values())
    dense = functools.partial(sparse_mlp._descend, sparse_mlp.dense)
    monkeypatch.setattr(sparse_mlp, "_descend_touched", functools.partial(dense, rate=2e-3))
    with pytest.raises(SystemExit, match="jaxtrelu, touched differs"):
        compared(next(iter(sparse_mlp.touched(args))))


def test_the_recipe_with_a_name_is_the_one_that_was_measured():
    """That of "jaxtrelu" in the worlds, of inputs whose mean norm is √L0."""
    told, recipe = synthetic_world.OURS, sae.frequent_resampling(9.0)
    measured = {
        "surrogate": Rectangle(told["bandwidth"], to_input=told["to_input"]),
        "initial_threshold": told["first"],
        "initial_norm": told["norm"],
        "coefficient_warmup": told["ramp"],
        "learning_rate_warmup": 0,
        "learning_rate_decay": 0.2,
        "clip_norm": 1.0,
        "batch_size": synthetic_world.BATCH,
        "input_scaling": 3.0,
        "name": "frequent_resampling",
    }
    common = ("learning_rate", "steer_from", "coefficient", "unit_norm_decoder")
    common += ("resample_every", "resample_until", "resample_from")
    measured |= {name: told[name] for name in common}
    assert not synthetic_world.CHANGES["jaxtrelu"]
    assert recipe == dataclasses.replace(sae.short_run(), **measured)
