"""How the products behind the first one are taken: asked for by name, or chosen by the platform."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from jax import export
from sparse_cases import (
    CAPACITY,
    CASES,
    FEATURES,
    SIDES,
    assert_close,
    cotangent,
    dense_gated,
    dense_mlp,
    gated_operands,
    operands,
    spoilt,
)

from jaxtrelu import gated_mlp, sparse_mlp, sparse_mlp_vjp
from jaxtrelu._primitive.spec import Spec
from jaxtrelu.sparse import compact_mlp, entry_sum
from jaxtrelu.sparse._block import Plan, takes_dense

NAMES = ("x", "w_in", "w_out", "threshold", "b_in", "b_out")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def sums(y, l0, penalty):
    return jnp.vdot(y, cotangent(*y.shape)) + jnp.vdot(l0, cotangent(l0.size, 1)[:, 0]) + penalty


@partial(jax.jit, static_argnums=(0, 1, 2))
def ours(case, products, capacity, *args):
    def function(x, w_in, w_out, threshold, b_in, b_out):
        y, activity = sparse_mlp(
            x, w_in, w_out, threshold, b_in=b_in, b_out=b_out, **CASES[case],
            capacity=capacity, products=products, with_activity=True,
        )  # fmt: skip

        def dense():
            return dense_mlp(x, w_in, w_out, threshold, b_in, b_out, **CASES[case])[2]

        penalty = entry_sum(jnp.square, activity, dense)
        return sums(y, activity.l0, penalty), (y, activity)

    return jax.grad(function, range(len(args)), has_aux=True)(*args)


@partial(jax.jit, static_argnums=0)
def theirs(case, *args):
    def function(*args):
        y, l0, a = dense_mlp(*args, **CASES[case])
        return sums(y, l0, jnp.sum(a**2)), (y, l0)

    return jax.grad(function, range(len(args)), has_aux=True)(*args)


@pytest.mark.parametrize("case", quick(CASES, {"shift", "jump"}))
def test_gathers_are_the_dense_function(case):
    """Both sides of the choice: as many slots as the fullest row needs, and too few."""
    args = operands(SIDES["sparse"])
    expected, (y, l0) = theirs(case, *args)
    for capacity, overflow in ((CAPACITY, False), (1, True)):
        gradients, (value, activity) = ours(case, "gathers", capacity, *args)
        assert bool(activity.overflow) is overflow
        assert_close(gradients, expected, NAMES)
        assert_close((value, activity.l0), (y, l0), ("y", "l0"))
    # Entries by row, as those of the lists.
    _, (_, found) = ours(case, "gathers", CAPACITY, *args)
    _, (_, listed) = ours(case, "loops", CAPACITY, *args)
    used, total = found.features < FEATURES, int(listed.counts.sum())
    for name in ("features", "rows"):
        np.testing.assert_array_equal(
            getattr(found, name)[used], getattr(listed, name)[:total], name
        )
    for name in ("counts", "fired"):
        np.testing.assert_array_equal(getattr(found, name), getattr(listed, name), name)


@pytest.mark.parametrize(("products", "overflow"), [("dense", True), ("loops", False)])
def test_asked_for_by_name(products, overflow):
    args = operands(SIDES["sparse"])
    gradients, (_, activity) = ours("shift", products, CAPACITY, *args)
    assert bool(activity.overflow) is overflow
    assert_close(gradients, theirs("shift", *args)[0], NAMES)


@pytest.mark.parametrize("products", ["gathers", "dense", "loops"])
def test_what_is_closed_contributes_nothing(products):
    """Also beside NaN and ∞ in its weights."""
    sound, bad = spoilt(operands(SIDES["sparse"]))

    @jax.jit
    def both(*args):
        def y(x, w_in, w_out, threshold, b_in, b_out):
            options = {"capacity": CAPACITY, "products": products}
            return sparse_mlp(x, w_in, w_out, threshold, b_in=b_in, b_out=b_out, **options)

        value, pullback = jax.vjp(y, *args)
        return value, *pullback(cotangent())

    assert_close(both(*bad), both(*sound), ("y", *NAMES))


def test_gathers_in_a_batch():
    args = operands(SIDES["sparse"])
    x = jnp.stack([args[0], args[0][::-1]])

    def y(x):
        return sparse_mlp(x, *args[1:4], products="gathers", capacity=CAPACITY)

    np.testing.assert_allclose(jax.jit(jax.vmap(y))(x), jnp.stack([y(x[0]), y(x[1])]), rtol=1e-6)


@pytest.mark.parametrize("rows", [3, 20])
def test_dense_gated(rows):
    args = gated_operands(SIDES["sparse"], rows)
    biases = dict(zip(("b_gate", "b_up", "b_out"), args[5:], strict=True))
    y = gated_mlp(*args[:5], **biases, products="dense")
    np.testing.assert_allclose(y, dense_gated(*args), rtol=1e-4, atol=1e-4)


def test_the_choice_of_each_platform():
    """One exported program for all of them, in which the platform decides."""
    plan = Plan(Spec("shift"), 1)
    for platform in PLATFORMS:
        choice = (
            jax.jit(lambda: takes_dense(plan, jnp.int32(0), 1))
            .trace()
            .lower(lowering_platforms=(platform,))
        )
        wanted = "false" if platform == "cpu" else "true"
        assert f"dense<{wanted}> : tensor<i1>" in choice.as_text()
    both = export.export(jax.jit(lambda: takes_dense(plan, jnp.int32(0), 1)), platforms=PLATFORMS)()
    assert not both.call()  # here, on the CPU


def test_errors():
    x, w_in, w_out, theta, *_ = operands(1.0)
    with pytest.raises(ValueError, match=r"`products` should be None or one of 'dense', 'loops',"):
        sparse_mlp(x, w_in, w_out, theta, products="sparse")
    with pytest.raises(NotImplementedError, match="products='gathers' cannot compute this call: "):
        sparse_mlp_vjp(x, w_in, w_out, theta, products="gathers")
    with pytest.raises(NotImplementedError, match="gated_mlp takes 'dense', 'loops'"):
        gated_mlp(x, w_in, w_in, w_out, theta, products="gathers")
    with pytest.raises(NotImplementedError, match="`screen` proves entries closed for lists"):
        sparse_mlp(x, w_in, w_out, theta, products="gathers", screen=True)


def products_that_always_run(function, *args):
    """How many products the compiled program has outside of branches that it may not take."""
    text = jax.jit(function).lower(*args).compile().as_text()
    parts, name, entry = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.-]+) .*{$", line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name is not None:
            parts[name].append(line)
    left, seen, number = [entry], set(), 0
    while left:
        if (name := left.pop()) in seen:
            continue
        seen.add(name)
        for line in parts[name]:
            if " conditional(" in line:
                continue
            number += len(re.findall(r" dot\(| custom-call\(.*\$(?:onednn|ynn)", line))
            left += re.findall(r"(?:calls|to_apply|body)=%([\w.-]+)", line)
    return number


def plain(x, w):
    return jax.nn.relu(x @ w.T - 1) @ w


def plainly_gated(x, w):
    return (jax.nn.relu(x @ w.T - 1) * (x @ w.T)) @ w


#: Of one weight, with the same in plain JAX.
DENSE = {
    "sparse": (lambda x, w: sparse_mlp(x, w, w, products="dense"), plain),
    "compact": (lambda x, w: compact_mlp(x, w, w), plain),
    "gated": (lambda x, w: gated_mlp(x, w, w, w, products="dense"), plainly_gated),
}
GUARDED = [(name, *way) for name in DENSE for way in ((4, False), (40, True))]
GUARDED += [("gated", 40, False), ("gated", 4, True)]  # which takes few examples another way
QUICKLY = {("sparse", 40, True), ("compact", 4, False), ("gated", 4, False)}


@functools.cache
def products_of_gradients(function, examples, batched):
    x, w = jnp.ones((examples, 16)), jnp.ones((64, 16))
    mapped = jax.vmap(function, (0, None)) if batched else function
    gradient = jax.grad(lambda x, w: jnp.sum(mapped(x, w) ** 2), (0, 1))
    return products_that_always_run(gradient, jnp.stack([x, x]) if batched else x, w)


@pytest.mark.parametrize(("name", "examples", "batched"), quick(GUARDED, QUICKLY))
def test_guards_cost_no_product(name, examples, batched):
    """Where nothing is NaN, a dense path has no more products than plain JAX.

    Written as loops of no trip, the guards were moved out of their loops by XLA, and always done.
    """
    ours, theirs = (products_of_gradients(each, examples, batched) for each in DENSE[name])
    assert 0 < ours <= theirs + 1
