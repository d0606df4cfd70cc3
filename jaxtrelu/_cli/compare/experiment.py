"""The comparison: trains with one activation after the other, selects a rate, measures the cost."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrelu import theory
from jaxtrelu._cli.compare import training
from jaxtrelu._cli.compare.network import Network
from jaxtrelu._cli.compare.settings import Settings
from jaxtrelu._cli.compare.training import (
    TEST,
    TRAIN,
    VALIDATION,
    Measures,
    Program,
    Rows,
    Run,
    State,
)
from jaxtrelu._cli.console import Bar
from jaxtrelu._cli.datasets import Dataset

# Of zeros, to which a trained network is calibrated afterwards.
SHARES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
_PROBED = 4096  # rows of each part


class Ratio(NamedTuple):
    """Time relative to a reference, over alternating rounds: the median and the quartiles."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class History:
    """Of the runs at the chosen learning rate, after each epoch: (seeds, epochs)."""

    loss: np.ndarray  # mean over the epoch's steps
    validation: np.ndarray  # accuracy
    closed: np.ndarray  # share of hidden units with derivative 0
    thresholds: np.ndarray  # quantiles .1, .5, .9 by layer: (seeds, epochs, depth, 3), or NaN


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one activation gave. Arrays hold one number per seed.

    `read` is what a linear probe reads of the class from the first hidden layer; `cut` accuracy and
    zeros (seeds, shares) with FATReLU put in after training, at the shares `SHARES`.
    """

    name: str
    learning_rate: float
    accuracy: np.ndarray
    zeros: np.ndarray
    closed: np.ndarray
    dead: np.ndarray
    kept_bytes: float
    temporary_bytes: int
    step_seconds: float
    ratio: Ratio
    history: History
    read: np.ndarray
    cut: tuple[np.ndarray, np.ndarray] | None


def work(settings: Settings) -> int:
    """Units of progress that `run` reports: the epochs, and one for compiling each activation."""
    return len(settings.activations) * (settings.epochs + 1)


def run(data: Dataset, settings: Settings, bar: Bar) -> list[Outcome]:
    """Compares the activations on one data set."""
    runs, rows = training.stack_runs(data, settings)
    outcomes: list[Outcome] = []
    reference: Callable[[], None] | None = None
    for name in settings.activations:
        started = time.perf_counter()
        bar.advance(0, f"{name}: compiling")
        program = training.compile_program(name, settings, runs, rows)
        bar.advance(1)
        state, losses, measures = _train(program, settings, runs, rows, bar, name)
        epoch = _timed(program, state, runs, rows)
        reference = reference or epoch
        outcome = _outcome(
            name, program, settings, runs, rows, (state, losses, measures), (epoch, reference)
        )
        outcomes.append(outcome)
        bar.log(
            f"{name:<17} test accuracy {outcome.accuracy.mean():.3f}, "
            f"{outcome.closed.mean():4.0%} closed  ({time.perf_counter() - started:.1f} s)"
        )
    return outcomes


def _train(
    program: Program, settings: Settings, runs: Run, rows: Rows, bar: Bar, name: str
) -> tuple[State, np.ndarray, Measures]:
    """Trains all runs. Losses (runs, epochs) and measures (runs, epochs, ...) after each epoch."""
    state, losses, measures = program.state, [], []
    for epoch in range(settings.epochs):
        # Later the network trains on with what it has: a threshold that follows its own effect on
        # the next layer's inputs would never settle.
        if program.calibrate is not None and epoch <= settings.epochs // 2:
            state = program.calibrate(state, runs, rows)
        state, loss = program.epoch(state, runs, rows)
        losses.append(np.asarray(loss))
        measures.append(jax.device_get(program.evaluate(state, runs, rows)))
        bar.advance(1, f"{name}: epoch {epoch + 1}/{settings.epochs}")
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *measures)
    return state, np.stack(losses, axis=1), stacked


def _timed(program: Program, state: State, runs: Run, rows: Rows) -> Callable[[], None]:
    """A call that trains one epoch more, on a state of its own, and waits for it."""
    held = [jax.tree.map(jnp.copy, state)]

    def epoch() -> None:
        held[0], loss = program.epoch(held[0], runs, rows)
        jax.block_until_ready(loss)

    return epoch


def _outcome(
    name: str,
    program: Program,
    settings: Settings,
    runs: Run,
    rows: Rows,
    trained: tuple[State, np.ndarray, Measures],
    timed: tuple[Callable[[], None], Callable[[], None]],
) -> Outcome:
    """Takes the learning rate with the best mean validation accuracy after the last epoch."""
    state, losses, measures = trained
    by_rate = measures.accuracy[:, -1, VALIDATION].reshape(-1, settings.seeds).mean(axis=1)
    best = int(np.argmax(by_rate))
    chosen = slice(best * settings.seeds, (best + 1) * settings.seeds)
    of_seeds = jax.tree.map(lambda array: array[chosen], measures)
    first = jax.tree.map(lambda array: array[0], (state.params, state.rest))
    batch = min(settings.batch, runs.train.shape[1])
    ratio, seconds = time_ratio(*timed)
    state, runs = jax.tree.map(lambda array: array[chosen], (state, runs))
    cut = None
    if program.cut is not None:
        accuracy, zeros = program.cut(state, runs, rows, jnp.asarray(SHARES, jnp.float32))
        cut = np.asarray(accuracy), np.asarray(zeros)
    return Outcome(
        name=name,
        learning_rate=settings.learning_rate[best],
        accuracy=of_seeds.accuracy[:, -1, TEST],
        zeros=of_seeds.zeros[:, -1],
        closed=of_seeds.closed[:, -1],
        dead=of_seeds.dead[:, -1],
        kept_bytes=kept_bytes_per_unit(nnx.merge(program.graph, *first), batch),
        temporary_bytes=program.temporary_bytes,
        step_seconds=seconds / (runs.train.shape[1] // batch),
        ratio=ratio,
        history=History(
            losses[chosen],
            of_seeds.accuracy[:, :, VALIDATION],
            of_seeds.closed,
            of_seeds.thresholds,
        ),
        read=_read(program, state, runs, rows),
        cut=cut,
    )


def _read(program: Program, state: State, runs: Run, rows: Rows) -> np.ndarray:
    """The accuracy of a linear probe on the first hidden layer, for each run."""
    values, parts = np.asarray(program.first(state, runs, rows)), np.asarray(runs.part)
    labels = np.asarray(rows.labels)
    found = []
    for of_run, part in zip(values, parts, strict=True):
        seen, tested = (np.flatnonzero(part == p)[:_PROBED] for p in (TRAIN, TEST))
        if not np.isfinite(of_run).all():
            found.append(np.nan)
            continue
        found.append(
            theory.linear_probe(of_run[seen], labels[seen], of_run[tested], labels[tested])
        )
    return np.array(found)


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
