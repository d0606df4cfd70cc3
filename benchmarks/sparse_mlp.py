#!/usr/bin/env python
"""The sparse two-layer product against dense ones: forward, gradient, step with Adam, finding.

suites:
  product    y, the gradient of a reconstruction loss, and a whole training step with Adam
  find       the open entries of a mask: words and select against nonzero and top_k
  screen     entries proved closed first: forward and gradient, in units of the dense encode alone
  touched    a step of gradient descent on a few examples: dense gradients, and those of touched
             features alone
  sweep      the gradient's time against m at fixed L0, and against L0 at fixed m (the crossover)

ratio is the time relative to dense JAX in the same turn (find: to vmapped jnp.nonzero), so below 1
is faster; "dense encode" is the first product alone, the limit of what can be skipped. Huge pages
for all or for none:
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/sparse_mlp.py
"""

import functools
import statistics
import sys

import _peers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _harness import FLIPS, Case, quietly, run

from jaxtrelu import bits, sparse_mlp, sparse_mlp_vjp
from jaxtrelu.sparse import prepare_screen

BATCH, WIDTH = 1024, 768


def weights(m, l0, seed=0):
    rng = np.random.default_rng(seed)
    w_in, w_out = rng.standard_normal((2, m, WIDTH), np.float32)
    threshold = statistics.NormalDist().inv_cdf(1 - l0 / m)
    return {
        "w_in": jnp.asarray(w_in / WIDTH**0.5),
        "b_in": jnp.zeros(m),
        "threshold": jnp.full(m, threshold, jnp.float32),
        "w_out": jnp.asarray(w_out / m**0.5),
        "b_out": jnp.zeros(WIDTH),
    }


def inputs(seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((BATCH, WIDTH), np.float32))


def dense(x, w_in, b_in, threshold, w_out, b_out):
    z = x @ w_in.T + b_in
    return jnp.where(z > threshold, z, 0) @ w_out + b_out


def sparse(x, *, capacity=128, screen=None, **params):
    return sparse_mlp(x, **params, variant="hard", capacity=capacity, screen=screen)


def loss(function, params, x):
    return jnp.mean((function(x, **params) - x) ** 2)


def gradient_of(function, params, x):
    gradient = jax.jit(jax.grad(functools.partial(loss, function)))
    return lambda: gradient(params, x)


class Training:
    """A training step with Adam that feeds itself, its state donated."""

    def __init__(self, function, params, x):
        adam = optax.adam(1e-4)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, x):
            value, grads = jax.value_and_grad(functools.partial(loss, function))(params, x)
            updates, state = adam.update(grads, state)
            return optax.apply_updates(params, updates), state, value

        self.step, self.x = step, x
        self.state = (jax.tree.map(jnp.copy, params), adam.init(params))

    def __call__(self):
        """Takes a step and returns the loss."""
        *self.state, value = self.step(*self.state, self.x)
        return value


def torch_product(params, x, mode):
    torch = _peers.optional("torch")
    if torch is None:
        return {}
    torch.set_num_threads(_peers.THREADS)
    x = torch.from_numpy(np.array(x))
    params = {k: torch.from_numpy(np.array(v)).requires_grad_(k != "threshold")
              for k, v in params.items()}  # fmt: skip
    trained = [p for p in params.values() if p.requires_grad]
    adam = torch.optim.Adam(trained, 1e-4, foreach=True)

    def forward():
        z = torch.nn.functional.linear(x, params["w_in"], params["b_in"])
        a = torch.where(z > params["threshold"], z, 0)
        return torch.addmm(params["b_out"], a, params["w_out"])

    def inference():
        with torch.inference_mode():
            return forward()

    def backward():
        adam.zero_grad(set_to_none=True)
        value = ((forward() - x) ** 2).mean()
        value.backward()
        return value.detach()

    def gradient():
        backward()
        return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in params.items()}

    def step():
        value = backward()
        adam.step()
        return value

    return {"PyTorch": {"forward": inference, "gradient": gradient, "Adam step": step}[mode]}


def product(args):
    x = inputs()
    for m in args.features:
        params = weights(m, args.l0)
        # The dense encode and, at least, the operands and results that have to move.
        limit = f"{2 * BATCH * WIDTH * m / 1e9:.3g} Gflop + {8 * m * WIDTH / 1e6:.3g} MB"
        encode = jax.jit(lambda x, w: x @ w.T)
        for mode in ("forward", "gradient", "Adam step"):
            peers = {}
            for name, function in (("dense JAX", dense), ("jaxtrelu", sparse)):
                if mode == "forward":
                    peers[name] = functools.partial(jax.jit(function), x, **params)
                elif mode == "gradient":
                    peers[name] = gradient_of(function, params, x)
                else:
                    peers[name] = Training(function, params, x)
            if not args.no_torch:
                peers |= torch_product(params, x, mode)
            case = functools.partial(
                Case, f"m={m}, L0={args.l0}", baseline="dense JAX", reference="dense JAX"
            )
            # Of an Adam step the loss is compared, before it; of the gradient every array.
            yield case(mode, peers, limit=limit, tolerance=FLIPS)
            del peers
        yield case(
            "limit", {"dense JAX": gradient_of(dense, params, x),
                      "dense encode": functools.partial(encode, x, params["w_in"])},
            compare=False,
        )  # fmt: skip


def screen(args):
    x = inputs()
    encode = jax.jit(lambda x, w: x @ w.T)
    for m in args.features:
        params = weights(m, args.l0)
        alone = quietly(functools.partial(encode, x, params["w_in"]))
        ways = {name: functools.partial(sparse, screen=name) for name in ("int8", "bfloat16")}
        for mode in ("forward", "gradient"):
            peers = {"dense encode": alone}
            functions = {"dense JAX": dense, "jaxtrelu": sparse} | ways
            if mode == "forward":
                peers |= {
                    name: functools.partial(jax.jit(function), x, **params)
                    for name, function in functions.items()
                }
                for name in ways:
                    prepared = prepare_screen(params["w_in"], name)
                    peers[f"{name}, prepared"] = functools.partial(
                        jax.jit(sparse), x, **params, screen=prepared
                    )
            else:
                peers |= {
                    name: gradient_of(function, params, x) for name, function in functions.items()
                }
            if not args.no_torch:
                peers |= torch_product(params, x, mode)
            yield Case(
                f"m={m}, L0={args.l0}", mode, peers, "dense encode", "dense JAX", tolerance=FLIPS
            )
        del peers


def _nonzero(z, theta, size):
    return jax.vmap(lambda row: jnp.nonzero(row, size=size)[0])(z > theta)


def _select(z, theta, size):
    return bits.compact(bits.pack(z > theta), size)[0]


def _top(z, theta, size):
    return jax.lax.top_k(z, size)[1]


def find(args):
    for m in args.features:
        z = jax.random.normal(jax.random.key(0), (BATCH, m))
        theta = statistics.NormalDist().inv_cdf(1 - args.l0 / m)
        size = 2 * args.l0
        nonzero, select, top = (
            jax.jit(functools.partial(f, theta=theta, size=size)) for f in (_nonzero, _select, _top)
        )
        peers = {"vmapped jnp.nonzero": nonzero, "jaxtrelu.bits": select, "lax.top_k": top}
        yield Case(
            f"{BATCH}x{m}", "find", {n: functools.partial(f, z) for n, f in peers.items()},
            "vmapped jnp.nonzero", "vmapped jnp.nonzero", 4 * z.size,
            view=functools.partial(_open_among, np.asarray(z), theta),
        )  # fmt: skip


def _open_among(z, theta, indices):
    """Which entries are open and listed. Lists differ in order, and in what fills them up."""
    rows, columns = np.arange(len(z))[:, None], np.asarray(indices)
    inside = columns < z.shape[1]
    columns = np.where(inside, columns, 0)
    listed = np.zeros(z.shape, bool)
    np.logical_or.at(listed, (rows, columns), inside & (z[rows, columns] > theta))
    return listed


class Descent:
    """A step of plain gradient descent that feeds itself, its weights donated."""

    def __init__(self, updated, params, x):
        self.step, self.x = jax.jit(updated, donate_argnums=0), x
        self.params = jax.tree.map(jnp.copy, params)

    def __call__(self):
        """Takes a step and returns the weights."""
        self.params = self.step(self.params, self.x)
        return self.params


def _descend(function, params, x, rate=1e-3):
    grads = jax.grad(functools.partial(loss, function))(params, x)
    return {name: value - rate * grads[name] for name, value in params.items()}


def _descend_touched(params, x, rate=1e-3):
    y, pullback = sparse_mlp_vjp(x, **params, variant="hard", capacity=128)
    found = pullback(2 / y.size * (y - x))
    updated = {
        name: params[name].at[found.features].add(-rate * getattr(found, name), mode="drop")
        for name in ("w_in", "b_in", "threshold", "w_out")
    }
    return updated | {"b_out": params["b_out"] - rate * found.b_out}


def touched(args):
    for m in args.features:
        params = weights(m, args.l0)
        for batch in (8, 64):
            x = inputs()[:batch]
            ways = {
                "dense JAX": functools.partial(_descend, dense),
                "jaxtrelu": functools.partial(_descend, sparse),
                "jaxtrelu, touched": _descend_touched,
            }
            yield Case(
                f"B={batch}, m={m}, L0={args.l0}", "descent step",
                {name: Descent(way, params, x) for name, way in ways.items()},
                "dense JAX", "dense JAX", 4 * m * WIDTH,
                # The updates, which would be lost beside the weights.
                tolerance=FLIPS, view=functools.partial(jax.tree.map, jnp.subtract, params),
            )  # fmt: skip


def sweep(args):
    x = inputs()
    points = [(m, args.l0) for m in (2048, 8192, 16384, 32768, 65536)]
    points += [(16384, l0) for l0 in (16, 256, 512, 1024, 2048)]
    for m, l0 in points:
        params = weights(m, l0)
        ours = functools.partial(sparse, capacity=2 * l0)
        peers = {
            "dense JAX": gradient_of(dense, params, x),
            "jaxtrelu": gradient_of(ours, params, x),
        }
        yield Case(f"m={m}, L0={l0}", "gradient", peers, "dense JAX", "dense JAX", tolerance=FLIPS)


def add_arguments(parser):
    parser.add_argument("--features", type=int, nargs="+", default=[16384], help="m")
    parser.add_argument("--l0", type=int, default=64, help="mean open features (default: 64)")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")


if __name__ == "__main__":
    suites = {
        "product": product,
        "screen": screen,
        "find": find,
        "touched": touched,
        "sweep": sweep,
    }
    sys.exit(run(__doc__, suites, add_arguments))
