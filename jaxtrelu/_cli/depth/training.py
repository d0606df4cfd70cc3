"""Trains configurations side by side, each with several seeds, all in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from jaxtrelu._cli.datasets import Dataset, stratified_split
from jaxtrelu._cli.depth import network
from jaxtrelu._cli.depth.initialisation import stack
from jaxtrelu._cli.depth.settings import Configuration, Settings, Start

# Shares of the steps over which the learning rate rises, and falls to 0 at the end.
_WARM_UP, _DECAY = 0.05, 0.25
_CLIP = 1.0  # of the gradient's norm, for Adam
_MOMENTUM = 0.9
# Every epoch sees each digit anew: turned (radians), scaled and moved (pixels) by up to this.
_TURN, _SCALE, _MOVE = 0.2, 0.12, 0.7
_SIDE = 8


class Parts(NamedTuple):
    """The rows of each seed, (seeds, rows, features), and their labels; not yet `prepared`."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: np.ndarray
    """Of the training rows (seeds, features)."""
    images: bool
    """Whether rows are images that can be turned and moved."""


class Result(NamedTuple):
    """What came out for one configuration: a row a seed."""

    loss: np.ndarray
    """Training loss by epoch (seeds, epochs); NaN or infinity where a net fell apart."""
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    zeros: np.ndarray
    """Share of zeros in the hidden layers on test rows, before and after training (seeds, 2)."""


def divide(data: Dataset, settings: Settings) -> Parts:
    """Splits 4:1 for each seed."""
    train, test, means = [], [], []
    for seed in range(settings.seeds):
        split = stratified_split(data.labels, settings.seed + seed)
        seen = np.concatenate([split.train, split.validation])
        spread = data.features[seen].astype(np.float64).std()
        x = (data.features / (spread if spread > 0 else 1)).astype(np.float32)
        train.append((x[seen], data.labels[seen]))
        test.append((x[split.test], data.labels[split.test]))
        means.append(x[seen].mean(0))
    (train_x, train_y), (test_x, test_y) = (
        tuple(np.stack(arrays) for arrays in zip(*part, strict=True)) for part in (train, test)
    )
    images = data.name == "digits" and data.features.shape[1] == _SIDE**2
    return Parts((train_x, train_y), (test_x, test_y), np.stack(means), images)


def prepared(x: Any, mean: Any) -> Any:
    """Rows without the mean and of root mean square 1, as the first layer's variance needs it."""
    x = x - mean
    square = jnp.mean(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _changed(key: jax.Array, image: jax.Array) -> jax.Array:
    """An image (side²,), turned, scaled and moved a little."""
    turn, scale, move = jax.random.split(key, 3)
    angle = jax.random.uniform(turn, (), minval=-_TURN, maxval=_TURN)
    factor = jax.random.uniform(scale, (2, 1), minval=1 - _SCALE, maxval=1 + _SCALE)
    shift = jax.random.uniform(move, (2, 1), minval=-_MOVE, maxval=_MOVE)
    middle = (_SIDE - 1) / 2
    place = jnp.indices((_SIDE, _SIDE)).reshape(2, -1) - middle
    rotation = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    source = factor * (rotation @ place) + middle + shift
    return map_coordinates(image.reshape(_SIDE, _SIDE), list(source), order=1)


class State(NamedTuple):
    """What changes in training, of one net; stacked over configurations and seeds."""

    params: Any
    optimiser: Any
    key: jax.Array


def train(
    configurations: list[Configuration],
    parts: Parts,
    classes: int,
    settings: Settings,
    tick: Callable[[], None],
) -> list[Result]:
    """Trains all of them, which have a ceiling or none; calls `tick` after each epoch."""
    starts = stack([c.start for c in configurations])
    begin, epoch, evaluate = _programs(settings, parts, classes)
    keys = jax.random.split(jax.random.key(settings.seed), settings.seeds)
    state = begin(keys, starts)
    before = evaluate(state, starts, parts.test, parts.mean)
    losses = []
    for number in range(settings.epochs):
        state, loss = epoch(state, starts, parts.train, parts.mean, number)
        losses.append(np.asarray(loss))
        tick()
        if np.isnan(losses[-1]).all():
            # Weights that are no numbers stay so: what is left of the run would not change a thing.
            for _ in range(number + 1, settings.epochs):
                losses.append(losses[-1])
                tick()
            break
    seen = evaluate(state, starts, parts.train, parts.mean)
    after = evaluate(state, starts, parts.test, parts.mean)
    measures = (np.stack(losses, -1), seen[0], after[0], np.stack([before[1], after[1]], -1))
    exact = [np.asarray(part, np.float64) for part in measures]  # as a file gives them back
    return [Result(*(part[i] for part in exact)) for i in range(len(configurations))]


def optimiser_of(name: str, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam, clipped; or gradient descent as it is, with momentum, which shows what it is given."""
    if name == "sgd":
        return optax.sgd(rate, _MOMENTUM)
    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))


def _programs(settings: Settings, parts: Parts, classes: int) -> tuple[Callable, ...]:
    """To begin, to train an epoch, to evaluate: of all configurations (axis 0) and seeds (1)."""
    rows, inputs = parts.train[0].shape[1:]
    batch = min(settings.batch, rows)
    steps = rows // batch
    total = steps * settings.epochs
    rise, fall = max(1, round(_WARM_UP * total)), max(1, round(_DECAY * total))
    rate = optax.join_schedules(
        [
            optax.warmup_constant_schedule(0.0, settings.learning_rate, rise),
            optax.linear_schedule(settings.learning_rate, 0.0, fall),
        ],
        [total - fall],
    )
    optimiser = optimiser_of(settings.optimiser, rate)

    def begin(key: jax.Array, start: Start) -> State:
        init_key, batch_key = jax.random.split(key)
        sizes = (inputs, settings.width, settings.depth, classes)
        params = network.initial(init_key, *sizes, start)
        return State(params, optimiser.init(params), batch_key)

    def loss(params, start, x, y):
        found = network.scores(params, x, start)
        return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()

    def epoch(state: State, start: Start, part, mean, number):
        order_key, change_key = jax.random.split(jax.random.fold_in(state.key, number))
        order = jax.random.permutation(order_key, rows)[: steps * batch].reshape(steps, batch)

        def step(carry, operand):
            params, moments = carry
            chosen, key = operand
            x = part[0][chosen]
            if parts.images:
                x = jax.vmap(_changed)(jax.random.split(key, batch), x)
            value, gradient = jax.value_and_grad(loss)(
                params, start, prepared(x, mean), part[1][chosen]
            )
            update, moments = optimiser.update(gradient, moments, params)
            return (optax.apply_updates(params, update), moments), value

        operands = order, jax.random.split(change_key, steps)
        (params, moments), values = jax.lax.scan(step, (state.params, state.optimiser), operands)
        return State(params, moments, state.key), values.mean()

    def evaluate(state: State, start: Start, part, mean):
        x = prepared(part[0], mean)
        found, zeros = network.scores_and_zeros(state.params, x, start)
        return jnp.mean(jnp.argmax(found, -1) == part[1]), jnp.mean(zeros)

    # Seeds share a start, configurations share keys and rows.
    return (
        jax.jit(jax.vmap(jax.vmap(begin, (0, None)), (None, 0))),
        jax.jit(
            jax.vmap(jax.vmap(epoch, (0, None, 0, 0, None)), (0, 0, None, None, None)),
            donate_argnums=0,
        ),
        jax.jit(jax.vmap(jax.vmap(evaluate, (0, None, 0, 0)), (0, 0, None, None))),
    )
