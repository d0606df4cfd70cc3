#!/usr/bin/env python
"""What exchanging nnx.relu saves in ordinary Flax models: memory of the gradient, and its time.

suites:
  memory   temporary memory of the compiled gradient with respect to all weights, by the compiler's
           own account: the same on every run; and whether the gradients are the same
  time     that gradient

models: an MLP of eight layers, the same with residual connections and with every layer under
jax.checkpoint, a ConvNet with strides or with pooling, and transformer blocks. Each has nnx.relu,
or thresholded_relu at a threshold of 0, and nothing else is different. For the documentation:
  python benchmarks/models.py --only memory --json docs/figures/models.json
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _harness import FLIPS, Case, Fact, difference, run
from flax import nnx

from jaxtrelu import thresholded_relu

ACTS = {"nnx.relu": nnx.relu, "jaxtrelu": functools.partial(thresholded_relu, threshold=0.0)}


class MLP(nnx.Module):
    """act(x @ W + b), eight times; with residual connections, or each under jax.checkpoint."""

    def __init__(self, act, rngs, *, residual=False, remat=False):
        self.layers = nnx.List([nnx.Linear(1024, 1024, rngs=rngs) for _ in range(8)])
        self.act, self.residual, self.remat = act, residual, remat

    def __call__(self, x):
        """(rows, 1024) to the same."""
        act = self.act

        def apply(layer, x):
            return act(layer(x))

        if self.remat:
            apply = nnx.remat(apply)
        for layer in self.layers:
            y = apply(layer, x)
            x = x + y if self.residual else y
        return x


class ConvNet(nnx.Module):
    """Three times two convolutions, the second with a stride or a pooling; then a linear layer."""

    def __init__(self, act, rngs, *, pooling=False):
        sizes = [3, 32, 32, 64, 64, 128, 128]
        self.convolutions = nnx.List(
            [
                nnx.Conv(sizes[k], sizes[k + 1], (3, 3), 1 if pooling else 1 + k % 2, rngs=rngs)
                for k in range(6)
            ]
        )
        self.head = nnx.Linear(128, 10, rngs=rngs)
        self.act, self.pooling = act, pooling

    def __call__(self, x):
        """(rows, 32, 32, 3) to (rows, 10)."""
        for k, convolution in enumerate(self.convolutions):
            x = self.act(convolution(x))
            if self.pooling and k % 2:
                x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.head(x.mean((1, 2)))


class Transformer(nnx.Module):
    """Four blocks of attention and of two linear layers, before each a normalisation."""

    def __init__(self, act, rngs):
        width = 256
        self.blocks = nnx.List(
            [
                nnx.Dict(
                    first=nnx.LayerNorm(width, rngs=rngs),
                    attention=nnx.MultiHeadAttention(8, width, decode=False, rngs=rngs),
                    second=nnx.LayerNorm(width, rngs=rngs),
                    up=nnx.Linear(width, 4 * width, rngs=rngs),
                    down=nnx.Linear(4 * width, width, rngs=rngs),
                )
                for _ in range(4)
            ]
        )
        self.act = act

    def __call__(self, x):
        """(rows, tokens, 256) to the same."""
        for block in self.blocks:
            x = x + block["attention"](block["first"](x))
            x = x + block["down"](self.act(block["up"](block["second"](x))))
        return x


MODELS = {
    "MLP, 8 layers, 2048 x 1024": (MLP, (2048, 1024)),
    "the same, residual": (functools.partial(MLP, residual=True), (2048, 1024)),
    "the same, each layer under jax.checkpoint": (functools.partial(MLP, remat=True), (2048, 1024)),
    "ConvNet with strides, 64 x 32 x 32 x 3": (ConvNet, (64, 32, 32, 3)),
    "the same with max pooling": (functools.partial(ConvNet, pooling=True), (64, 32, 32, 3)),
    "transformer, 4 blocks, 16 x 128 x 256": (Transformer, (16, 128, 256)),
}


def gradients(model, shape):
    """For each activation the compiled gradient, bound to weights and inputs."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    found = {}
    for name, act in ACTS.items():
        graph, weights = nnx.split(model(act, nnx.Rngs(0)))

        def loss(weights, x, graph=graph):
            return jnp.mean(nnx.merge(graph, weights)(x) ** 2)

        found[name] = jax.jit(jax.grad(loss)).lower(weights, x).compile(), weights, x
    return found


def memory(args):
    for shape, (model, size) in MODELS.items():
        found = gradients(model, size)
        sizes = {n: c.memory_analysis().temp_size_in_bytes for n, (c, *_) in found.items()}
        for name, size in sizes.items():
            yield Fact(shape, "temporary memory", name, size / 1e6, "MB", size / sizes["nnx.relu"])
        first, second = (compiled(*operands) for compiled, *operands in found.values())
        one, other = map(jax.tree.leaves, (first, second))
        difference(f"memory, {shape}: jaxtrelu", other, one, FLIPS)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), first, second)
        share = np.mean(jax.tree.leaves(same))
        yield Fact(shape, "weights with the same gradient, bit for bit", "jaxtrelu", share, "")


def time(args):
    for shape, (model, size) in MODELS.items():
        peers = {
            name: functools.partial(compiled, *operands)
            for name, (compiled, *operands) in gradients(model, size).items()
        }
        yield Case(shape, "gradient", peers, "nnx.relu", "nnx.relu", tolerance=FLIPS)


if __name__ == "__main__":
    sys.exit(run(__doc__, {"memory": memory, "time": time}))
