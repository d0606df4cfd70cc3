#!/usr/bin/env python
"""Residual blocks h + act(h @ W1) @ W2: what they keep for the gradient, and the time of a step.

suites:
  memory   growth of the compiled gradient's temporary memory per layer and hidden element, between
           two depths, by the compiler's own account
  time     a gradient step

"dense" is jnp.where, "words" jaxtrelu.thresholded_relu between dense products, "compact"
jaxtrelu.compact_mlp. About one entry in ten is open. The gradients of the weights are part of the
result, not of the temporary memory; but some of what is kept fits into their buffers until they are
written. With --frozen, the gradient is that of the input alone, and nothing can hide there.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, Case, Fact, run

import jaxtrelu


def dense(h, w_in, w_out, threshold):
    z = h @ w_in.T
    return jnp.where(z > threshold, z - threshold, 0) @ w_out


def words(h, w_in, w_out, threshold):
    return jaxtrelu.thresholded_relu(h @ w_in.T, threshold) @ w_out


def compact(h, w_in, w_out, threshold):
    return jaxtrelu.compact_mlp(h, w_in, w_out, threshold)


LAYERS = {"dense": dense, "words": words, "compact": compact}


def network(layer, threshold, weights, x):
    for w_in, w_out in weights:
        # Of unit mean square before every product, so that the share of open entries stays.
        h = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        x = x + layer(h, w_in, w_out, threshold)
    return jnp.mean(x * x)


def gradient(layer, args):
    threshold = 1.2816  # the standard normal's quantile at 0.9
    loss = functools.partial(network, layer, threshold)
    return jax.jit(jax.grad(loss, argnums=1 if args.frozen else (0, 1)))


def memory(args):
    pair = (jax.ShapeDtypeStruct((args.hidden, args.width), jnp.float32),) * 2
    x = jax.ShapeDtypeStruct((args.rows, args.width), jnp.float32)
    few, many = args.depths
    shape = f"{args.rows} x {args.width} x {args.hidden}, {few} to {many} layers"
    for name, layer in LAYERS.items():
        sizes = [
            gradient(layer, args).lower([pair] * depth, x).compile().memory_analysis()
            for depth in (few, many)
        ]
        grown = sizes[1].temp_size_in_bytes - sizes[0].temp_size_in_bytes
        per_element = grown / ((many - few) * args.rows * args.hidden)
        yield Fact(shape, "growth", name, per_element, "bytes per hidden element")


def time(args):
    rng = np.random.default_rng(0)
    depth = args.depths[0]
    shape = (depth, 2, args.hidden, args.width)
    stacked = rng.standard_normal(shape, np.float32) / args.width**0.5
    weights = [(jnp.asarray(w_in), 0.1 * jnp.asarray(w_out)) for w_in, w_out in stacked]
    x = jnp.asarray(rng.standard_normal((args.rows, args.width), np.float32))
    peers = {
        name: functools.partial(gradient(layer, args), weights, x) for name, layer in LAYERS.items()
    }
    sizes = f"{args.rows} x {args.width} x {args.hidden}, {depth} layers"
    flops = 12 * depth * args.rows * args.width * args.hidden
    limit = f"{flops / 1e9:.3g} Gflop"
    yield Case(sizes, "gradient step", peers, "dense", "dense", limit, tolerance=FLIPS)


def add_arguments(parser):
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs=2, default=[48, 96])
    parser.add_argument("--frozen", action="store_true", help="gradient of the input alone")


if __name__ == "__main__":
    sys.exit(run(__doc__, {"memory": memory, "time": time}, add_arguments))
