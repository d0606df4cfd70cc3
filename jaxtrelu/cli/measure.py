"""What an activation costs: bytes kept for the backward pass, and time."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrelu.cli.network import Network


class Ratio(NamedTuple):
    """Time relative to a reference, over alternating rounds: the median and the quartiles."""

    median: float
    low: float
    high: float


def kept_bytes_per_unit(network: Network, batch: int) -> float:
    """Bytes per hidden unit and row that `jax.vjp` of the jitted network keeps.

    These are the residuals that leave a jit boundary: of each hidden layer, what the activation
    keeps and the output that the next layer needs for its weights (4 bytes). Parameters and input
    rows, which exist anyway, are not counted. A program that holds both passes in one jit may
    recompute or drop some of them.
    """
    graph = nnx.graphdef(network)
    params, rest = nnx.state(network, nnx.Param, ...)
    rows = jnp.ones((batch, network.dense[0].in_features))

    @jax.jit
    def scores(params, rest, rows):
        return nnx.merge(graph, params, rest)(rows)

    _, pull = jax.vjp(lambda params: scores(params, rest, rows), params)
    present = {id(leaf) for leaf in jax.tree.leaves((params, rest, rows))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull) if id(leaf) not in present}
    units = batch * len(network.dense) * network.head.in_features
    return sum(leaf.nbytes for leaf in kept.values()) / units


def time_ratio(
    candidate: Callable[[], None], reference: Callable[[], None], rounds: int = 7
) -> tuple[Ratio, float]:
    """How much longer `candidate` takes than `reference`, called in turns in this process.

    A round calls them in the order A B B A, so that neither profits from coming second.

    Returns:
        The ratio, and the median seconds of `candidate`.
    """
    calls = (candidate, reference, reference, candidate)
    for call in calls:
        call()  # unmeasured: the first calls touch new memory
    seconds = np.array([[_seconds(call) for call in calls] for _ in range(rounds)])
    ratios = seconds[:, [0, 3]].sum(axis=1) / seconds[:, [1, 2]].sum(axis=1)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(median), float(low), float(high)), float(np.median(seconds[:, [0, 3]]))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
