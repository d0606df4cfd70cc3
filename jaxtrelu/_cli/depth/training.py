"""Trains configurations side by side, each with several seeds, all in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrelu._cli.datasets import Dataset, stratified_split
from jaxtrelu._cli.depth import network
from jaxtrelu._cli.depth.initialisation import stack
from jaxtrelu._cli.depth.settings import Configuration, Settings, Start

# Share of the steps over which the learning rate rises.
_WARM_UP = 0.1


class Parts(NamedTuple):
    """The rows of each seed, (seeds, rows, ...); features have a root mean square of 1 a row."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Result(NamedTuple):
    """What came out for one configuration: a row a seed."""

    loss: np.ndarray
    """Training loss by epoch (seeds, epochs); NaN or infinity where a net fell apart."""
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    zeros: np.ndarray
    """Share of zeros in the hidden layers on test rows, before and after training (seeds, 2)."""


def divide(data: Dataset, settings: Settings) -> Parts:
    """Splits 4:1 for each seed, and scales the rows.

    The training rows' mean is taken off, and each row is then divided by its root mean square, so
    that the first layer's pre-activations have the variance that they were meant to have.
    """
    train, test = [], []
    for seed in range(settings.seeds):
        split = stratified_split(data.labels, settings.seed + seed)
        seen = np.concatenate([split.train, split.validation])
        x = data.features.astype(np.float64)
        spread = x[seen].std()
        x = (x - x[seen].mean(0)) / (spread if spread > 0 else 1)
        size = np.sqrt(np.mean(x * x, 1, keepdims=True))
        x = (x / np.where(size > 0, size, 1)).astype(np.float32)
        train.append((x[seen], data.labels[seen]))
        test.append((x[split.test], data.labels[split.test]))
    (train_x, train_y), (test_x, test_y) = (
        tuple(np.stack(arrays) for arrays in zip(*part, strict=True)) for part in (train, test)
    )
    return Parts((train_x, train_y), (test_x, test_y))


def train(
    configurations: list[Configuration],
    parts: Parts,
    classes: int,
    settings: Settings,
    tick: Callable[[], None],
) -> list[Result]:
    """Trains all of them, which have a ceiling or none; calls `tick` after each epoch."""
    count, seeds = len(configurations), settings.seeds
    starts = stack([c.start for c in configurations])
    batch = min(settings.batch, parts.train[1].shape[1])
    programs = _Programs(settings, parts, classes, batch)
    keys = jax.random.split(jax.random.key(settings.seed), seeds)
    state = programs.begin(keys, starts)
    before = programs.evaluate(state, starts, parts.test)
    losses = []
    for epoch in range(settings.epochs):
        state, loss = programs.epoch(state, starts, parts.train, jnp.asarray(epoch))
        losses.append(np.asarray(loss))
        tick()
    seen = programs.evaluate(state, starts, parts.train)
    after = programs.evaluate(state, starts, parts.test)
    loss = np.stack(losses, -1).reshape(count, seeds, -1)
    zeros = np.stack([np.asarray(before[1]), np.asarray(after[1])], -1)
    return [
        Result(loss[i], np.asarray(seen[0][i]), np.asarray(after[0][i]), zeros[i])
        for i in range(count)
    ]


class State(NamedTuple):
    """What changes in training, of one net; stacked over configurations and seeds."""

    params: Any
    optimiser: Any
    key: jax.Array


class _Programs:
    """The compiled functions. State leaves have axes (configurations, seeds, ...) in front."""

    def __init__(self, settings: Settings, parts: Parts, classes: int, batch: int):
        rows, inputs = parts.train[0].shape[1:]
        self.steps = rows // batch
        total = self.steps * settings.epochs
        rate = optax.warmup_constant_schedule(
            0.0, settings.learning_rate, max(1, round(_WARM_UP * total))
        )
        optimiser = optax.adam(rate)
        sizes = (inputs, settings.width, settings.depth, classes)

        def begin(key, start: Start) -> State:
            init_key, batch_key = jax.random.split(key)
            params = network.initial(init_key, *sizes, start)
            return State(params, optimiser.init(params), batch_key)

        def loss(params, start, x, y):
            found = network.scores(params, x, start)
            return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()

        def epoch(state: State, start: Start, rows, number):
            order = jax.random.permutation(jax.random.fold_in(state.key, number), len(rows[1]))

            def step(carry, chosen):
                params, moments = carry
                x, y = rows[0][chosen], rows[1][chosen]
                value, gradient = jax.value_and_grad(loss)(params, start, x, y)
                update, moments = optimiser.update(gradient, moments, params)
                return (optax.apply_updates(params, update), moments), value

            chosen = order[: self.steps * batch].reshape(self.steps, batch)
            (params, moments), values = jax.lax.scan(step, (state.params, state.optimiser), chosen)
            return State(params, moments, state.key), values.mean()

        def evaluate(state: State, start: Start, rows):
            found, zeros = network.scores_and_zeros(state.params, rows[0], start)
            return jnp.mean(jnp.argmax(found, -1) == rows[1]), jnp.mean(zeros)

        self.begin = jax.jit(jax.vmap(jax.vmap(begin, (0, None)), (None, 0)))
        self.epoch = jax.jit(
            jax.vmap(jax.vmap(epoch, (0, None, 0, None)), (0, 0, None, None)), donate_argnums=0
        )
        self.evaluate = jax.jit(jax.vmap(jax.vmap(evaluate, (0, None, 0)), (0, 0, None)))
