#!/usr/bin/env python
"""What a screen of `sparse_mlp` is made of: its rounded product, its parts, and what it leaves.

suites:
  product     the rounded product alone, in both layouts of the weights, beside the float32 one
  parts       the parts of a gradient step with an int8 screen, each a program of its own, with the
              whole step, screened and not; ratios are to the dense encode alone
  candidates  entries that a screen leaves to compute, per row, at several L0

For the documentation:
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/screening.py \
      --json docs/figures/screening.json
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from _harness import Case, Fact, quietly, run
from sparse_mlp import BATCH, WIDTH, gradient_of, inputs, sparse, weights

from jaxtrelu import bits
from jaxtrelu._primitive.packing import pack_last, words_for
from jaxtrelu.sparse import prepare_screen
from jaxtrelu.sparse._entries import EntryList, groups_of, list_entries
from jaxtrelu.sparse._screen import _with_bits, proved_closed
from jaxtrelu.sparse._sums import entry_dots

L0S = (16, 64, 256)


def encode(x, w):
    return x @ w.T


def multiply(over, dtype, a, b):
    dimensions = (((1,), (over,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def candidates_of(x, screen, threshold):
    """Words of the entries that are not proved closed."""
    return pack_last(~proved_closed(x, screen, threshold))


def product(args):
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.integers(-127, 128, (rows, WIDTH)), jnp.float32)
        for rows in (BATCH, args.features)
    )
    peers = {}
    for dtype, sums in (("float32", "float32"), ("int8", "int32"), ("bfloat16", "float32")):
        for layout, over, table in (("(m, d)", 1, w), ("(d, m)", 0, w.T)):
            function = jax.jit(functools.partial(multiply, over, sums))
            operands = x.astype(dtype), jnp.array(table).astype(dtype)
            peers[f"{dtype} {layout}"] = functools.partial(function, *operands)
    # Sums of whole numbers, exact but for those of float32.
    yield Case(
        f"m={args.features}", "product", peers, "float32 (m, d)", "float32 (m, d)",
        f"{2 * BATCH * WIDTH * args.features / 1e9:.3g} Gflop",
        tolerance=1e-5, view=lambda result: result.astype(jnp.float32),
    )  # fmt: skip


def parts(args):
    x, params = inputs(), weights(args.features, args.l0)
    w, threshold = params["w_in"], params["threshold"]
    rounded = prepare_screen(w)
    words = jax.jit(candidates_of)(x, rounded, threshold)
    total = jnp.sum(bits.count(words), dtype=jnp.int32)
    size = -(-int(total) // BATCH) * BATCH
    listed = jax.jit(
        lambda words, total: list_entries(
            groups_of(bits.transpose(words, args.features)), total, size
        )
    )
    entries = listed(words, total)
    dots = jax.jit(lambda e, total, w, x: entry_dots(e, total, w, x, jnp.float32))
    z = dots(entries, total, w, x)
    opened = z > threshold[entries.group]
    across = words_for(args.features)
    setting = jax.jit(
        lambda e, total, opened: _with_bits(
            EntryList(e.member, e.group), total, BATCH, across, opened
        )
    )
    found, expected = setting(entries, total, opened), pack_last(encode(x, w) > threshold)
    # A rounding error may decide the odd entry otherwise; more is another gate.
    if (wrong := int(jnp.sum(bits.count(found ^ expected)))) > 1e-4 * int(total):
        sys.exit(f"WRONG: {wrong} of {int(total)} candidates are decided otherwise")
    peers = {
        "dense encode": functools.partial(jax.jit(encode), x, w),
        "rounding w, with its norms": functools.partial(prepare_screen, w),
        "int8 product, bound, compare, pack": functools.partial(
            jax.jit(candidates_of), x, rounded, threshold
        ),
        "listing the candidates by feature": functools.partial(listed, words, total),
        "their float32 dots": functools.partial(dots, entries, total, w, x),
        "setting the open ones' bits": functools.partial(setting, entries, total, opened),
        "the whole step": gradient_of(functools.partial(sparse, screen="int8"), params, x),
        "the whole step without a screen": gradient_of(sparse, params, x),
    }
    yield Case(
        f"m={args.features}, L0={args.l0}, {int(total) / BATCH:.0f} candidates a row", "part",
        {name: quietly(peer) for name, peer in peers.items()}, "dense encode", "dense encode",
        compare=False,
    )  # fmt: skip


def candidates(args):
    x = inputs()
    left = jax.jit(lambda *given: jnp.sum(bits.count(candidates_of(*given))))
    for l0 in L0S:
        params = weights(args.features, l0)
        opened = float(jnp.sum(encode(x, params["w_in"]) > params["threshold"])) / BATCH
        yield Fact(f"m={args.features}, L0={l0}", "candidates", "open", opened, "a row")
        for precision in ("int8", "bfloat16"):
            screen = prepare_screen(params["w_in"], precision)
            found = float(left(x, screen, params["threshold"])) / BATCH
            yield Fact(f"m={args.features}, L0={l0}", "candidates", precision, found, "a row")


def add_arguments(parser):
    parser.add_argument("--features", type=int, default=16384, help="m (default: 16384)")
    parser.add_argument("--l0", type=int, default=64, help="mean open features (default: 64)")


if __name__ == "__main__":
    suites = {"product": product, "parts": parts, "candidates": candidates}
    sys.exit(run(__doc__, suites, add_arguments))
