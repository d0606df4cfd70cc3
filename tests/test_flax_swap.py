"""Swapping activations: thresholds against NumPy, what is found, what is refused, what is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrelu import Rectangle, plot
from jaxtrelu.nnx import (
    FixedThreshold,
    JumpReLU,
    SparsityCurve,
    Swapped,
    SwappedLayer,
    Threshold,
    ThresholdedReLU,
    sparsity_curve,
    swap_activations,
    zeros_by_layer,
)

X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)


def mlp(*activations, width=32):
    """Dense layers with these between them."""
    rngs, layers, size = nnx.Rngs(0), [], X.shape[1]
    for activation in activations:
        layers += [nnx.Linear(size, width, rngs=rngs), activation]
        size = width
    return nnx.Sequential(*layers, nnx.Linear(size, 3, rngs=rngs))


class Gated(nnx.Module):
    """A feed-forward layer whose gate is an attribute, and a layer that only this class knows."""

    def __init__(self, rngs):
        self.w_gate, self.w_up = (nnx.Linear(6, 16, use_bias=False, rngs=rngs) for _ in range(2))
        self.w_out = nnx.Linear(16, 6, rngs=rngs)
        self.gate = functools.partial(jax.nn.gelu, approximate=False)
        self.norms = nnx.List([nnx.LayerNorm(6, rngs=rngs)])

    def __call__(self, x):
        x = self.norms[0](x)
        return self.w_out(self.gate(self.w_gate(x)) * self.w_up(x))


class Blocks(nnx.Module):
    """Blocks within a list, and a head."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Gated(rngs) for _ in range(2)])
        self.act = nnx.silu
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.act(x))


def dense(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def quantile(z, share, axis):
    ordered = np.sort(z, axis=axis) if axis is not None else np.sort(z, axis=None)
    place = int(np.ceil(round(share * ordered.shape[0], 9))) - 1
    return np.maximum(ordered[place], 0)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("variant", ["hard", "shift"])
def test_thresholds_are_those_of_one_layer_after_the_other(variant, per_channel):
    model = mlp(nnx.relu, nnx.gelu)
    found = swap_activations(model, X, sparsity=0.8, variant=variant, per_channel=per_channel)
    h = np.float64(X)
    for number, layer in zip((0, 2), found.layers, strict=True):
        z = dense(model.layers[number], h)
        theta = quantile(z, 0.8, 0 if per_channel else None)
        np.testing.assert_allclose(layer.threshold, theta, rtol=1e-4, atol=1e-5)
        h = np.where(z > theta, z - (theta if variant == "shift" else 0), 0)
        assert layer.zeros == pytest.approx(np.mean(h == 0), abs=2e-3)
    np.testing.assert_allclose(found.model(X), dense(model.layers[4], h), rtol=1e-3, atol=1e-3)
    assert found.zeros == pytest.approx(0.8, abs=5e-3)
    assert [layer.was for layer in found.layers] == ["relu", "gelu"]
    assert isinstance(found, Swapped) and isinstance(found.layers[0], SwappedLayer)


def test_the_model_given_stays_as_it_was():
    model = mlp(nnx.relu)
    before = model(X)
    swap_activations(model, X)
    assert model.layers[1] is nnx.relu
    np.testing.assert_array_equal(model(X), before)


def test_what_is_found_where():
    found = swap_activations(Blocks(nnx.Rngs(0)), X, sparsity=0.9)
    paths = {layer.path: layer.was for layer in found.layers}
    assert paths == {"blocks.0.gate": "gelu", "blocks.1.gate": "gelu", "act": "silu"}
    assert list(paths)[-1] == "act"  # in the order of the calls
    assert isinstance(found.model.blocks[1].gate, ThresholdedReLU)
    assert "blocks.0.gate" in found.summary() and "kept for the backward pass" in found.summary()
    chosen = swap_activations(Blocks(nnx.Rngs(0)), X, which=lambda path, value: path[-1] == "gate")
    assert [layer.path for layer in chosen.layers] == ["blocks.0.gate", "blocks.1.gate"]
    assert chosen.model.act is nnx.silu


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nnx.PReLU(), "PReLU"),
        (ThresholdedReLU(0.1), "ThresholdedReLU"),
        (JumpReLU(32, surrogate=Rectangle(0.1), threshold=0.1), "JumpReLU"),
        (nnx.leaky_relu, "leaky_relu"),
    ],
)
def test_modules_and_functions(activation, name):
    found = swap_activations(mlp(activation), X, sparsity=0.7)
    assert found.layers[0].was == name
    assert found.zeros == pytest.approx(0.7, abs=5e-3)


def test_an_activation_of_ones_own():
    def mine(x):
        return jnp.maximum(x, 0)

    found = swap_activations(mlp(mine), X, which=lambda path, value: value is mine)
    assert found.layers[0].was == "mine"


def test_never_below_zero():
    """A ReLU closes half: fewer zeros would open what it closed."""
    found = swap_activations(mlp(nnx.relu), X, sparsity=0.05)
    assert float(found.layers[0].threshold) == 0
    np.testing.assert_allclose(found.model(X), mlp(nnx.relu)(X), rtol=1e-6)


def test_kept_bytes():
    """Of two layers of 32: ReLU keeps 9 bytes an element, hard one bit and the output."""
    found = swap_activations(mlp(nnx.relu, nnx.relu), X)
    entries = 2 * 32 * len(X)
    assert found.kept_before / entries == pytest.approx(9, abs=0.2)
    assert found.kept_after / entries == pytest.approx(4.125, abs=0.2)


def accuracy(labels):
    def score(model):
        return float(jnp.mean(jnp.argmax(model(X), -1) == labels))

    return score


def test_a_wanted_loss_of_accuracy():
    model = mlp(nnx.relu)
    score = accuracy(jnp.argmax(model(X), -1))
    found = swap_activations(model, X, max_loss=0.1, score=score)
    assert found.score_before == 1 and 0.9 <= found.score_after < 1
    more = swap_activations(model, X, sparsity=found.sparsity + 1 / 64, score=score)
    assert more.score_after < found.score_after
    assert found.zeros > 0.6


def test_fine_tuning_after_each_share():
    """It gets the model and the share; learned thresholds are parameters, fixed ones are not."""
    model, seen = mlp(nnx.relu), []

    def fine_tune(new, share):
        seen.append(
            (share, [type(v) for v in jax.tree.leaves(nnx.state(new), is_leaf=is_threshold)])
        )
        new.layers[0].bias[...] += 1.0  # which opens more
        new.layers[2].bias[...] += 1.0

    found = swap_activations(model, X, sparsity=(0.6, 0.9), fine_tune=fine_tune, learned=False)
    assert [share for share, _ in seen] == [0.6, 0.9]
    assert FixedThreshold in seen[0][1] and found.sparsity == 0.9
    assert found.zeros == pytest.approx(0.9, abs=5e-3)
    np.testing.assert_allclose(found.model.layers[2].bias[...] - model.layers[2].bias[...], 2.0)
    learned = swap_activations(model, X, learned=True, surrogate=Rectangle(0.5))
    assert isinstance(learned.model.layers[1].threshold, Threshold)
    assert learned.zeros == pytest.approx(0.8, abs=5e-3)


def is_threshold(value):
    return isinstance(value, nnx.Variable)


def test_sparsity_curve():
    model = mlp(nnx.relu, nnx.relu)
    curve = sparsity_curve(model, X, [0.95, 0.6], accuracy(jnp.argmax(model(X), -1)))
    assert isinstance(curve, SparsityCurve)
    np.testing.assert_allclose(curve.zeros, curve.sparsity, atol=5e-3)
    assert curve.score[0] < curve.score[1]
    from matplotlib.figure import Figure

    assert plot.accuracy(*curve[1:], axes=Figure().subplots()).get_ylabel() == "accuracy"


def closed_to(z, error, output):
    """The largest threshold whose output is within the error, from all that z has, in float64."""
    whole = output(np.maximum(z, 0))
    for theta in np.unique(np.maximum(z, 0))[::-1]:
        off = output(np.where(z > theta, z, 0)) - whole
        if np.linalg.norm(off) <= error * np.linalg.norm(whole):
            return theta
    raise AssertionError("no threshold is within the error")


def test_a_wanted_error_of_the_next_layer():
    """One layer after the other, as counted here over all thresholds that the data have."""
    model = mlp(nnx.relu, nnx.relu)
    found = swap_activations(model, X, error=0.15)
    h = np.float64(X)
    for number, layer in zip((0, 2), found.layers, strict=True):
        z = dense(model.layers[number], h)
        after = model.layers[number + 2]
        theta = closed_to(z, 0.15, lambda h, after=after: dense(after, h))
        h = np.where(z > float(layer.threshold), z, 0)
        assert layer.zeros == pytest.approx(np.mean(z <= theta), abs=2e-3)
        assert 0.14 < layer.error <= 0.15
    np.testing.assert_allclose(found.model(X), dense(model.layers[4], h), rtol=1e-3, atol=1e-3)
    assert found.sparsity is None and "14." in found.summary().split("error of the next")[1]
    assert model.layers[1] is nnx.relu and isinstance(found.model.layers[0], nnx.Linear)


def test_the_next_layer_is_the_first_that_depends_on_the_activation():
    """In a gated block w_up comes next, but does not see the gate: the error is w_out's."""
    model = Gated(nnx.Rngs(0))
    model.gate = nnx.relu
    found = swap_activations(model, X, error=0.2)
    x = np.float64(model.norms[0](X))
    gate, up = x @ np.float64(model.w_gate.kernel[...]), x @ np.float64(model.w_up.kernel[...])
    theta = closed_to(gate, 0.2, lambda g: dense(model.w_out, g * up))
    (layer,) = found.layers
    assert layer.zeros == pytest.approx(np.mean(gate <= theta), abs=2e-3)
    assert layer.error <= 0.2 and type(found.model.w_up) is nnx.Linear


def test_zeros_of_rows_that_were_held_out():
    found = swap_activations(Blocks(nnx.Rngs(0)), X[:150], sparsity=0.9)
    zeros = zeros_by_layer(found.model, X[150:])
    assert list(zeros) == [layer.path for layer in found.layers]
    x = found.model.blocks[0].norms[0](X[150:])
    first = found.model.blocks[0].gate(found.model.blocks[0].w_gate(x))
    assert zeros["blocks.0.gate"] == pytest.approx(np.mean(np.asarray(first) == 0), abs=1e-9)
    assert zeros["blocks.0.gate"] != pytest.approx(found.layers[0].zeros, abs=1e-9)
    with pytest.raises(ValueError, match="applies no ThresholdedReLU"):
        zeros_by_layer(mlp(nnx.relu), X)


class Twice(nnx.Module):
    def __init__(self):
        self.act = nnx.relu

    def __call__(self, x):
        return self.act(self.act(x) - 0.1)


class Jitted(nnx.Module):
    def __init__(self):
        self.inner = mlp(nnx.relu)

    def __call__(self, x):
        return nnx.jit(lambda model, x: model(x))(self.inner, x)


@pytest.mark.parametrize(
    ("model", "sample", "options", "words"),
    [
        (mlp(jnp.tanh), X, {}, "no activation was found"),
        (Twice(), X, {}, "act is applied more than once in a call"),
        (Jitted(), X, {}, "inner.layers.1 is inside of a transformation"),
        (mlp(nnx.relu), X * np.nan, {}, "at layers.1: pre-activations should be finite"),
        (mlp(nnx.relu), X, {"sparsity": 1.0}, "`sparsity` should be greater than 0"),
        (mlp(nnx.relu), X, {"sparsity": []}, "there is none"),
        (mlp(nnx.relu), X, {"sparsity": [0.9, 0.8]}, "`sparsity` should not fall"),
        (mlp(nnx.relu), X, {"variant": "clamp"}, "has no zeros"),
        (mlp(nnx.relu), X, {"max_loss": 0.1}, "needs `score`"),
        (mlp(nnx.relu), X, {"max_loss": 0.1, "score": len, "sparsity": 0.5}, "with `sparsity`"),
        (mlp(nnx.relu), X, {"max_loss": -1, "score": len}, "at least 0"),
        (mlp(nnx.relu), X, {"learned": True}, "surrogate"),
        (mlp(nnx.relu), X, {"error": 1.5}, "`error` should be greater than 0 and less than 1"),
        (mlp(nnx.relu), X, {"error": (0.1, 0.2)}, "`error` should be greater than 0"),
        (mlp(nnx.relu), X, {"error": 0.1, "sparsity": 0.5}, "does not go with `sparsity`"),
        (mlp(nnx.relu), X, {"error": 0.1, "per_channel": True}, "does not go with `per_channel`"),
        (
            mlp(nnx.relu),
            X * np.nan,
            {"error": 0.1},
            "at layers.1: .* should be finite",
        ),
        (mlp(nnx.gelu), X, {"error": 1e-3}, "the exchange of gelu for a threshold of 0 itself"),
        (mlp(jnp.tanh), X, {"error": 0.1}, "no activation was found"),
        (Twice(), X, {"error": 0.1}, "act is applied more than once in a call"),
        (Jitted(), X, {"error": 0.1}, "inner.layers.1 is inside of a transformation"),
        (
            nnx.Sequential(mlp(), nnx.relu),
            X,
            {"error": 0.1},
            "depends on layers.1, so",
        ),
    ],
)
def test_what_is_refused(model, sample, options, words):
    with pytest.raises(ValueError, match=words):
        swap_activations(model, sample, **options)


@pytest.mark.parametrize("options", [{"sparsity": 0.8}, {"error": 0.1}], ids=str)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_sample_that_is_not_finite(options, value):
    """Of infinity a threshold could become infinite, and all of a layer closed."""
    sample = np.array(X)
    sample[: len(X) // 2, 0] = value
    with pytest.raises(ValueError, match=r"at layers\.\d: pre-activations should be finite"):
        swap_activations(mlp(nnx.relu), sample, **options)


def test_what_is_no_function_and_no_model():
    with pytest.raises(TypeError, match="`which` should be a function, but is 'act'"):
        swap_activations(mlp(nnx.relu), X, which="act")
    with pytest.raises(TypeError, match=r"`model` should be .*, but is function"):
        swap_activations(lambda x: x, X)


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (np.nan, ValueError, "`score` returned NaN"),
        (jnp.float32(np.nan), ValueError, "`score` returned NaN"),
        ("0.5", TypeError, "should return a number, larger for a better model, .* returned '0.5'"),
        (None, TypeError, "returned None"),
        ((0.5, 1), TypeError, r"returned \(0.5, 1\)"),
        (1j, TypeError, "returned 1j"),
        (jnp.complex64(1j), TypeError, "returned Array"),
        (np.zeros(3), TypeError, r"returned an array of shape \(3,\)"),
        (jnp.zeros((1, 1)), TypeError, r"returned an array of shape \(1, 1\)"),
    ],
    ids=str,
)
def test_a_score_that_is_no_number(returned, error, words):
    model = mlp(nnx.relu)
    with pytest.raises(error, match=words):
        swap_activations(model, X, score=lambda m: returned)
    with pytest.raises(error, match=words):
        swap_activations(model, X, max_loss=0.1, score=lambda m: 1 if m is model else returned)
    with pytest.raises(error, match=words):
        sparsity_curve(model, X, [0.5], lambda m: returned)


def test_a_score_may_be_an_array_without_axes():
    found = swap_activations(mlp(nnx.relu), X, score=lambda m: jnp.mean(m(X)))
    assert isinstance(found.score_before, float) and isinstance(found.score_after, float)
    curve = sparsity_curve(mlp(nnx.relu), X, [0.5], lambda m: -np.float32(np.inf))
    assert curve.score.tolist() == [-np.inf]  # as a logarithm may be
    with pytest.raises(ValueError, match="`score` returned -inf for the model as it is"):
        swap_activations(mlp(nnx.relu), X, max_loss=0.1, score=lambda m: -np.inf)


def test_a_list_of_batches_is_all_their_rows():
    model, batches = mlp(nnx.relu, nnx.gelu), [X[:70], jnp.asarray(X[70:])]
    one, several = (swap_activations(model, sample, sparsity=0.7) for sample in (X, batches))
    for a, b in zip(one.layers, several.layers, strict=True):
        assert float(a.threshold) == float(b.threshold) and a.entries == b.entries
    assert zeros_by_layer(one.model, batches) == zeros_by_layer(one.model, X)
    curves = [sparsity_curve(model, s, [0.6, 0.8], lambda m: 0.0).zeros for s in (X, batches)]
    np.testing.assert_array_equal(*curves)
    # What `forward` is given is its own affair.
    own = swap_activations(
        model, batches, sparsity=0.7, forward=lambda m, parts: m(jnp.concatenate(parts))
    )
    assert float(own.layers[0].threshold) == float(one.layers[0].threshold)


@pytest.mark.parametrize(
    ("sample", "error", "words"),
    [
        ([(X, X)], TypeError, "is a list with a tuple in it"),
        (X.tolist(), TypeError, "is a list with a list in it"),
        ([X, X[:, :3]], ValueError, r"should have one shape, but have \(6,\) and \(3,\)"),
        ([], TypeError, "but is an empty list: pass arrays"),
        (X.astype(str), TypeError, "should be a batch of numbers, but holds <U"),
        (X[:, :3], TypeError, r"cannot be called with `sample`, an array of shape \(\d+, 3\)"),
        ({"x": X}, TypeError, "cannot be called with `sample`, dict: .* say by `forward`"),
        (list(X), ValueError, r"is a list of vectors, .* pass np.stack\(sample\)"),
        ([X, "rows.npy"], TypeError, "is a list with a str in it"),
        ((X, X), TypeError, "but is tuple: pass arrays"),
        (None, TypeError, "but is NoneType: pass arrays"),
        ("rows.npy", TypeError, "but is str: pass arrays"),
        ((batch for batch in [X]), TypeError, "but is generator: pass arrays"),
        (X[:0], ValueError, r"layers.1 is applied to an array of shape \(0, 32\), which is empty"),
    ],
)
def test_a_sample_that_is_none(sample, error, words):
    model = mlp(ThresholdedReLU(0.5))
    calls = [
        lambda: swap_activations(model, sample),
        lambda: swap_activations(model, sample, error=0.1),
        lambda: zeros_by_layer(model, sample),
    ]
    for call in calls:
        with pytest.raises(error, match=words):
            call()


def test_zeros_of_nan_are_not_counted():
    with pytest.raises(ValueError, match=r"NaN arrives at layers.1"):
        zeros_by_layer(mlp(ThresholdedReLU(0.5)), X * np.nan)


def test_what_no_share_is():
    with pytest.raises(TypeError, match=r"`sparsity` should be a number, .* but is '0.8'"):
        swap_activations(mlp(nnx.relu), X, sparsity="0.8")
    with pytest.raises(TypeError, match="`sparsities` should be a number, or several, but is None"):
        sparsity_curve(mlp(nnx.relu), X, None, len)
    with pytest.raises(ValueError, match="`max_loss` should be at least 0"):
        swap_activations(mlp(nnx.relu), X, max_loss="0.1", score=len)


def test_a_choice_that_is_no_activation():
    with pytest.raises(TypeError, match=r"`which` chooses layers.0.kernel, a Param, which is no"):
        swap_activations(mlp(nnx.relu), X, which=lambda path, value: path[-1] == "kernel")


def test_a_score_that_is_none():
    with pytest.raises(TypeError, match="`score` should be a function"):
        swap_activations(mlp(nnx.relu), X, score=0.5)
    with pytest.raises(TypeError, match="`score` should be a function"):
        sparsity_curve(mlp(nnx.relu), X, [0.5], 0.5)


def test_a_loss_that_no_threshold_is_within():
    model = mlp(nnx.gelu)
    with pytest.raises(ValueError, match="the exchange itself costs more"):
        swap_activations(model, X, max_loss=0.0, score=lambda m: -float(abs(m(X) - model(X)).sum()))
