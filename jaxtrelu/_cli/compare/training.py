"""Trains one network per seed and learning rate, all of them side by side in one program."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxtrelu._cli.compare.network import Network, initial_kernels
from jaxtrelu._cli.compare.settings import Settings
from jaxtrelu._cli.datasets import Dataset, stratified_split

_OPTIMISER = optax.scale_by_adam()
# Rows that are evaluated together, so that memory does not grow with the data set.
_CHUNK = 512
_CALIBRATION_ROWS = 128
TRAIN, VALIDATION, TEST = range(3)
# Those that are exchanged for FATReLU after training.
CUT = ("relu", "gelu")


class Rows(NamedTuple):
    """The data set on the device, shared by all runs. Padded to whole chunks."""

    features: jax.Array  # (rows, features)
    labels: jax.Array  # (rows,)


class Run(NamedTuple):
    """What one run has for its own; stacked along a leading axis of runs."""

    key: jax.Array  # of the order of batches
    kernels: tuple[jax.Array, ...]  # to start from
    learning_rate: jax.Array
    train: jax.Array  # row numbers (train rows,)
    part: jax.Array  # which part a row is in, -1 for padding (rows,)
    mean: jax.Array  # of the training rows (features,)
    scale: jax.Array  # 1 / their standard deviation (features,)


class State(NamedTuple):
    """What changes in training; stacked along a leading axis of runs."""

    params: Any
    rest: Any
    optimiser: Any
    key: jax.Array


class Measures(NamedTuple):
    """Of one network on all rows. Shares are over all hidden units."""

    accuracy: jax.Array  # (3,): train, validation, test
    zeros: jax.Array  # share of hidden values that are 0, on test rows
    closed: jax.Array  # share of hidden units with derivative 0, on test rows
    dead: jax.Array  # units whose derivative is 0 on every training row
    thresholds: jax.Array  # their quantiles .1, .5 and .9 in each layer (depth, 3); NaN if none


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions for one activation. Each works on all runs at once.

    Attributes:
        calibrate: (state, runs, rows) to the state with thresholds set to the wanted sparsity;
            None for activations that are not calibrated.
        epoch: (state, runs, rows) to (state, mean loss); gives away its state.
        evaluate: (state, runs, rows) to `Measures`.
        cut: (state, runs, rows, shares) to (accuracy, zeros) on test rows with activations
            exchanged for FATReLU at each share of zeros; None where thresholds are there already.
        first: (state, runs, rows) to the values of the first hidden layer (runs, rows, width).
        state: the state to begin with.
        temporary_bytes: what one epoch's program allocates beside its arguments and results.
        graph: the network without its arrays.
    """

    calibrate: Callable | None
    epoch: Callable
    evaluate: Callable
    cut: Callable | None
    first: Callable
    state: State
    temporary_bytes: int
    graph: Any


def stack_runs(data: Dataset, settings: Settings) -> tuple[Run, Rows]:
    """Splits for each seed, the same for each learning rate and each activation."""
    padding = -len(data.labels) % _CHUNK
    runs = []
    for seed in range(settings.seeds):
        split = stratified_split(data.labels, settings.seed + seed)
        part = np.full(len(data.labels) + padding, -1, np.int32)
        for number, rows in enumerate((split.train, split.validation, split.test)):
            part[rows] = number
        seen = data.features[split.train].astype(np.float64)
        spread = seen.std(axis=0)
        # A constant column says nothing; it becomes 0 rather than infinite.
        scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
        runs.append((split.train, part, np.float32(seen.mean(axis=0)), np.float32(scale)))
    repeated = [run for _ in settings.learning_rate for run in runs]
    parts = [jnp.asarray(np.stack(arrays)) for arrays in zip(*repeated, strict=True)]
    shared = Rows(
        jnp.asarray(np.pad(data.features, ((0, padding), (0, 0)))),
        jnp.asarray(np.pad(data.labels, (0, padding))),
    )
    keys, kernels = _starts(data, settings)
    rates = np.repeat(np.asarray(settings.learning_rate, np.float32), settings.seeds)
    return Run(keys, kernels, jnp.asarray(rates), *parts), shared


def _starts(data: Dataset, settings: Settings) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Keys of the order of batches, and kernels to start from, of all runs.

    Runs are numbered learning rate by learning rate, and seed by seed within each.
    """
    sizes = (data.features.shape[1], *[settings.width] * settings.depth, data.classes)

    def of_seed(number: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        kernel_key, batch_key = jax.random.split(key)
        return batch_key, initial_kernels(kernel_key, sizes)

    def of_all() -> tuple[jax.Array, tuple[jax.Array, ...]]:
        drawn = jax.vmap(of_seed)(jnp.arange(settings.seeds))
        again = len(settings.learning_rate)
        return jax.tree.map(lambda array: jnp.concatenate([array] * again), drawn)

    return jax.jit(of_all)()  # one program: small ones cost more to compile than to run


def compile_program(name: str, settings: Settings, runs: Run, rows: Rows) -> Program:
    """Compiles training and evaluation for one activation."""
    build = partial(Network, name=name, threshold=settings.threshold)
    batch = min(settings.batch, runs.train.shape[1])
    first = jax.tree.map(lambda kernel: kernel[0], runs.kernels)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(first)))
    state = jax.jit(jax.vmap(partial(_start, build)))(runs)

    def over_runs(function: Callable) -> Callable:
        return jax.vmap(function, (0, 0, None))

    jitted = jax.jit(over_runs(partial(_epoch, graph, batch)), donate_argnums=0)
    epoch = jitted.lower(state, runs, rows).compile()
    memory = epoch.memory_analysis()
    calibrate = None
    if name.endswith("-calibrated"):
        calibrate = jax.jit(over_runs(partial(_calibrated, graph, settings.sparsity)))
    return Program(
        calibrate=calibrate,
        epoch=epoch,
        evaluate=jax.jit(over_runs(partial(_evaluate, graph))),
        cut=jax.jit(jax.vmap(partial(_cut, graph), (0, 0, None, None))) if name in CUT else None,
        first=jax.jit(over_runs(partial(_first, graph))),
        state=state,
        temporary_bytes=0 if memory is None else memory.temp_size_in_bytes,
        graph=graph,
    )


def _first(graph: Any, state: State, run: Run, rows: Rows) -> jax.Array:
    network = nnx.merge(graph, state.params, state.rest)
    return network.activations[0](network.dense[0](_inputs(run, rows.features)))


def _cut(
    graph: Any, state: State, run: Run, rows: Rows, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
    network = nnx.merge(graph, state.params, state.rest)
    seen = _inputs(run, rows.features[run.train[:_CALIBRATION_ROWS]])

    def at(share: jax.Array) -> tuple[jax.Array, jax.Array]:
        cut = network.with_zeros(seen, share)

        def chunk(total, start):
            features, labels, part = (
                jax.lax.dynamic_slice_in_dim(array, start, _CHUNK)
                for array in (rows.features, rows.labels, run.part)
            )
            scores, values = cut.hidden(_inputs(run, features))
            tested = part == TEST
            hits = jnp.sum(tested & (jnp.argmax(scores, axis=-1) == labels))
            zeros = sum(jnp.sum(tested[:, None] & (value == 0)) for value in values)
            return (total[0] + hits, total[1] + zeros), None

        zero = jnp.zeros((), jnp.int32)
        offsets = jnp.arange(0, len(rows.labels), _CHUNK)
        (hits, zeros), _ = jax.lax.scan(chunk, (zero, zero), offsets)
        count = jnp.sum(run.part == TEST)
        units = len(network.dense) * network.head.in_features
        return hits / count, zeros / (count * units)

    return jax.lax.map(at, shares)


def _inputs(run: Run, features: jax.Array) -> jax.Array:
    return (features - run.mean) * run.scale


def _start(build: Callable, run: Run) -> State:
    params, rest = nnx.state(build(run.kernels), nnx.Param, ...)
    return State(params, rest, _OPTIMISER.init(params), run.key)


def _calibrated(graph: Any, sparsity: float, state: State, run: Run, rows: Rows) -> State:
    """The state with its thresholds set on the first training rows."""
    network = nnx.merge(graph, state.params, state.rest)
    network.calibrate(_inputs(run, rows.features[run.train[:_CALIBRATION_ROWS]]), sparsity)
    params, rest = nnx.state(network, nnx.Param, ...)
    return state._replace(params=params, rest=rest)


def _epoch(graph: Any, batch: int, state: State, run: Run, rows: Rows) -> tuple[State, jax.Array]:
    """One pass over the training rows in a new order; the incomplete last batch is left out."""
    key, shuffle_key = jax.random.split(state.key)
    steps = run.train.size // batch
    order = jax.random.permutation(shuffle_key, run.train)[: steps * batch]

    def loss(params, rest, chosen):
        scores = nnx.merge(graph, params, rest)(_inputs(run, rows.features[chosen]))
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, rows.labels[chosen])
        return losses.mean()

    def step(carry, chosen):
        params, optimiser = carry
        value, gradients = jax.value_and_grad(loss)(params, state.rest, chosen)
        updates, optimiser = _OPTIMISER.update(gradients, optimiser, params)
        updates = jax.tree.map(lambda update: -run.learning_rate * update, updates)
        return (optax.apply_updates(params, updates), optimiser), value

    (params, optimiser), losses = jax.lax.scan(
        step, (state.params, state.optimiser), order.reshape(steps, batch)
    )
    return State(params, state.rest, optimiser, key), losses.mean()


def _evaluate(graph: Any, state: State, run: Run, rows: Rows) -> Measures:
    network = nnx.merge(graph, state.params, state.rest)
    depth, width = len(network.activations), network.head.in_features

    def chunk(total, start):
        """Adds the counts of `_CHUNK` rows to those so far."""
        correct, zeros, closed, opened = total
        features, labels, part = (
            jax.lax.dynamic_slice_in_dim(array, start, _CHUNK)
            for array in (rows.features, rows.labels, run.part)
        )
        scores, values, slopes = network.hidden(_inputs(run, features))
        hits = jnp.argmax(scores, axis=-1) == labels
        correct += jnp.stack([jnp.sum(hits & (part == p)) for p in range(3)])
        tested = (part == TEST)[:, None]
        zeros += sum(jnp.sum(tested & (value == 0)) for value in values)
        closed += sum(jnp.sum(tested & (slope == 0)) for slope in slopes)
        trained = (part == TRAIN)[:, None]
        opened |= jnp.stack([jnp.any(trained & (slope != 0), axis=0) for slope in slopes])
        return (correct, zeros, closed, opened), None

    zero = jnp.zeros((), jnp.int32)
    start = (jnp.zeros(3, jnp.int32), zero, zero, jnp.zeros((depth, width), bool))
    offsets = jnp.arange(0, len(rows.labels), _CHUNK)
    (correct, zeros, closed, opened), _ = jax.lax.scan(chunk, start, offsets)
    sizes = jnp.stack([jnp.sum(run.part == p) for p in range(3)])
    units = sizes[TEST] * (depth * width)
    return Measures(
        accuracy=correct / sizes,
        zeros=zeros / units,
        closed=closed / units,
        dead=jnp.sum(~opened),
        thresholds=network.threshold_quantiles(),
    )
