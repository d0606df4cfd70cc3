"""Cases that the tests of the sparse products share: operands, variants and dense references.

Operands have one shape for most tests and their programs are compiled once per case: which path is
taken, is decided by the threshold alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxtrelu

ROWS, WIDTH, FEATURES, OUT = 20, 8, 64, 5
CAPACITY = 16
#: Thresholds with which about 3 entries of an example are open, and about 25: more than `CAPACITY`.
SIDES = {"sparse": 1.7, "dense": 0.3}

CASES = {
    "shift": {"variant": "shift"},
    "ceiling": {"variant": "shift", "ceiling": 0.5},
    "hard": {"variant": "hard"},
    "jump": {"variant": "hard", "surrogate": jaxtrelu.Rectangle(0.3)},
    "jump to input": {"variant": "hard", "surrogate": jaxtrelu.Triangle(0.3, to_input=True)},
    "smoothed shift": {"variant": "shift", "surrogate": jaxtrelu.Rectangle(0.3)},
}
#: Compiles in half the time. Tests of transformations compile as users do.
QUICK = {"xla_backend_optimization_level": 0}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def operands(threshold, rows=ROWS, width=WIDTH, features=FEATURES, out=OUT, seed=0):
    """x, w_in, w_out, threshold, b_in, b_out; pre-activations are about standard normal."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, width), (features, width), (features, out), (features,), (out,)]
    x, w_in, w_out, b_in, b_out = (rng.normal(size=shape) for shape in shapes)
    theta = threshold + 0.1 * rng.random(features)
    arrays = (x, w_in / max(width, 1) ** 0.5, w_out, theta, 0.1 * b_in, b_out)
    # Placed, and not converted by JAX: that would be a program for each shape.
    return [jax.device_put(array.astype(np.float32)) for array in arrays]


def gated_operands(threshold, rows=ROWS, seed=0):
    """x, w_gate, w_up, w_out, threshold, b_gate, b_up, b_out."""
    x, w_gate, w_out, theta, b_gate, b_out = operands(threshold, rows, seed=seed)
    w_up, b_up = operands(threshold, rows, seed=seed + 1)[1::3]
    return [x, w_gate, w_up, w_out, theta, b_gate, b_up, b_out]


def dense_mlp(x, w_in, w_out, threshold, b_in, b_out, **case):
    """The reference: y, l0 and the activations, by dense products."""
    z = x @ w_in.T + b_in
    a = jaxtrelu.thresholded_relu(z, threshold, **case)
    gates = jaxtrelu.step(z, threshold, surrogate=case.get("surrogate"))
    return a @ w_out + b_out, gates.sum(-1), a


def dense_gated(x, w_gate, w_up, w_out, threshold, b_gate, b_up, b_out, **case):
    """The reference of the gated product."""
    gate = jaxtrelu.thresholded_relu(x @ w_gate.T + b_gate, threshold, **case)
    return (gate * (x @ w_up.T + b_up)) @ w_out + b_out


def cotangent(rows=ROWS, out=OUT):
    """Multiples of 1/8: exact in every dtype."""
    waves = np.cos(np.arange(rows * out, dtype=np.float32))
    return jax.device_put((np.round(8 * waves) / 8).reshape(rows, out))


def assert_close(ours, theirs, names=None):
    names = names or range(len(ours))
    for name, one, other in zip(names, ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE, err_msg=str(name))


NAN, INF = float("nan"), float("inf")


def spoilt(args, closed=7):
    """Operands with feature `closed` closed for all, and the same with NaN and ∞ in its weights.

    The first weight's -∞ is beside numbers greater than 0: its pre-activations are -∞, closed.
    """
    at = 4 if len(args) == 8 else 3
    sound = list(args)
    sound[0] = sound[0].at[:, 0].set(jnp.abs(sound[0][:, 0]) + 0.1)
    sound[at] = sound[at].at[closed].set(99.0)
    bad = list(sound)
    bad[1] = bad[1].at[closed, 0].set(-INF)
    for i in range(2, at):
        bad[i] = bad[i].at[closed].set(NAN).at[closed, 0].set(INF)
    return sound, bad
