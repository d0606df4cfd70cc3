"""Runs the comparison: trains, selects, and measures one activation after the other."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrelu.cli import training
from jaxtrelu.cli.console import Bar
from jaxtrelu.cli.data import Dataset
from jaxtrelu.cli.measure import kept_bytes_per_unit, time_ratio
from jaxtrelu.cli.results import Curves, Row
from jaxtrelu.cli.settings import Settings
from jaxtrelu.cli.training import TEST, VALIDATION, Measures, Program, Rows, Run, State


def work(settings: Settings) -> int:
    """Units of progress that `run` reports: the epochs, and one for compiling each activation."""
    return len(settings.activations) * (settings.epochs + 1)


def run(data: Dataset, settings: Settings, bar: Bar) -> list[Row]:
    """Compares the activations on one data set."""
    runs, rows = training.stack_runs(data, settings)
    found: list[Row] = []
    reference: Callable[[], None] | None = None
    for name in settings.activations:
        started = time.perf_counter()
        bar.advance(0, f"{name}: compiling")
        program = training.compile_program(name, settings, runs, rows)
        bar.advance(1)
        state, losses, measures = _train(program, settings, runs, rows, bar, name)
        epoch = _timed(program, state, runs, rows)
        reference = reference or epoch
        row = _row(name, program, settings, runs, (state, losses, measures), (epoch, reference))
        found.append(row)
        bar.log(
            f"{name:<17} test accuracy {row.accuracy.mean():.3f}, "
            f"{row.closed.mean():4.0%} closed  ({time.perf_counter() - started:.1f} s)"
        )
    return found


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


def _row(
    name: str,
    program: Program,
    settings: Settings,
    runs: Run,
    trained: tuple[State, np.ndarray, Measures],
    timed: tuple[Callable[[], None], Callable[[], None]],
) -> Row:
    """Takes the learning rate with the best mean validation accuracy after the last epoch."""
    state, losses, measures = trained
    by_rate = measures.accuracy[:, -1, VALIDATION].reshape(-1, settings.seeds).mean(axis=1)
    best = int(np.argmax(by_rate))
    chosen = slice(best * settings.seeds, (best + 1) * settings.seeds)
    of_seeds = jax.tree.map(lambda array: array[chosen], measures)
    first = jax.tree.map(lambda array: array[0], (state.params, state.rest))
    batch = min(settings.batch, runs.train.shape[1])
    ratio, seconds = time_ratio(*timed)
    return Row(
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
        curves=Curves(
            losses[chosen],
            of_seeds.accuracy[:, :, VALIDATION],
            of_seeds.closed,
            of_seeds.thresholds,
        ),
    )
