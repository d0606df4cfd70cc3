#!/usr/bin/env python
"""How much of the class is read behind a layer as its threshold rises after training.

suites:
  layer   two hidden layers of 128 units with ReLU, trained on two thirds of a data set, on several
          splits; a linear probe fitted to the first layer's activations of the training rows, and
          its accuracy on the rows that are left; with the share of units that no training row opens

For the documentation:
  python benchmarks/read_out.py --json docs/figures/read_out.json
"""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _harness import Fact, run
from sklearn import datasets

from jaxtrelu import theory, thresholded_relu

NAMES = ("digits", "breast_cancer", "wine")
SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
WIDTH = 128


def load(name, seed):
    """Rows and classes to train on, and those kept aside, scaled by the first."""
    bunch = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    cut = 2 * len(order) // 3
    x = bunch.data - bunch.data[order[:cut]].mean(0)
    x = jnp.asarray((x / (bunch.data[order[:cut]].std(0) + 1e-6))[order], jnp.float32)
    y = jnp.asarray(bunch.target[order])
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def initial(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    he = jax.nn.initializers.he_normal()
    return [
        (he(key, shape), jnp.zeros(shape[1]))
        for key, shape in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def scores(layers, x):
    for w, b in layers[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


@functools.partial(jax.jit, static_argnames="steps")
def train(layers, x, y, steps):
    optimizer = optax.adam(1e-3)

    def loss(layers):
        return optax.softmax_cross_entropy_with_integer_labels(scores(layers, x), y).mean()

    def step(carry, _):
        layers, state = carry
        update, state = optimizer.update(jax.grad(loss)(layers), state)
        return (optax.apply_updates(layers, update), state), None

    return jax.lax.scan(step, (layers, optimizer.init(layers)), None, steps)[0][0]


def layer(args):
    for name in args.data:
        read = {}
        for seed in range(args.seeds):
            (x, y), (z, truth) = load(name, seed)
            start = initial(jax.random.key(seed), (x.shape[1], WIDTH, WIDTH, int(y.max()) + 1))
            w, b = train(start, x, y, args.steps)[0]
            before, after = x @ w + b, z @ w + b
            for share, variant in itertools.product(SHARES, ("hard", "shift")):
                theta = theory.quantile_threshold(before, share)
                kept, seen = (thresholded_relu(a, theta, variant=variant) for a in (before, after))
                read.setdefault((share, variant), []).append(
                    theory.linear_probe(kept, y, seen, truth)
                )
                if variant == "hard":
                    closed = float(jnp.mean(jnp.all(kept == 0, 0)))
                    read.setdefault((share, "never open"), []).append(closed)
        for (share, what), found in read.items():
            yield Fact(name, f"{share:.0%} zeros", what, 100 * float(np.mean(found)), "%")


def add_arguments(parser):
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES), help="data sets")
    parser.add_argument("--seeds", type=int, default=5, help="splits (default: 5)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")


if __name__ == "__main__":
    sys.exit(run(__doc__, {"layer": layer}, add_arguments))
