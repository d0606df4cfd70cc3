"""The synthetic world: its statistics; and its scores on cases that can be counted by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtrelu import sae
from jaxtrelu.sae import _synthetic as synthetic

TREE = sae.SyntheticWorld(
    features=20, dimension=12, most=0.5, least=0.2, roots=2, branching=2, depth=2, rank=0, noise=0.0
)


def present(world, count=20_000, seed=0):
    x, magnitudes = map(np.asarray, world.sample(jax.random.key(seed), count))
    return x, magnitudes, magnitudes > 0


def test_the_hierarchy():
    # 2 roots, 4 children, 8 grandchildren, and 6 in no tree.
    assert TREE.in_trees == 14
    wanted = [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, -1, -1, -1, -1, -1, -1]
    assert TREE.parents.tolist() == wanted
    _, _, here = present(TREE)
    p = TREE.probabilities
    for i, parent in enumerate(wanted):
        chance, above = p[i], parent
        while above >= 0:
            chance, above = chance * p[above], wanted[above]
        assert here[:, i].mean() == pytest.approx(chance, abs=0.015)
        if parent >= 0:
            assert not (here[:, i] & ~here[:, parent]).any()


def test_firing_follows_zipf_and_inputs_are_sums_of_directions():
    world = dataclasses.replace(TREE, roots=0, exponent=0.7, most=0.4, least=0.01)
    x, magnitudes, here = present(world)
    p = world.probabilities
    assert (p[0], p[-1]) == (pytest.approx(0.4), pytest.approx(0.01))
    np.testing.assert_allclose(here.mean(0), p, atol=0.015)
    # (i + 1)^−.7, shifted and scaled: differences have its ratios.
    shape = np.arange(1.0, 21) ** -0.7
    assert (p[1] - p[3]) / (p[3] - p[7]) == pytest.approx(
        (shape[1] - shape[3]) / (shape[3] - shape[7]), rel=1e-4
    )
    np.testing.assert_allclose(np.linalg.norm(world.directions, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(x, magnitudes @ np.asarray(world.directions), atol=1e-4)
    assert magnitudes[here].mean() == pytest.approx(1, abs=0.01)


def test_correlation_has_the_asked_share_and_leaves_frequencies():
    world = dataclasses.replace(TREE, roots=0, rank=2, correlation=0.8, most=0.5, least=0.5)
    loadings = np.asarray(world.loadings)
    np.testing.assert_allclose((loadings**2).sum(1), 0.8, rtol=1e-5)
    _, _, here = present(world)
    np.testing.assert_allclose(here.mean(0), 0.5, atol=0.015)
    # At probability one half, the correlation of two gates is 2/π arcsin of the latent one.
    latent = loadings @ loadings.T
    np.fill_diagonal(latent, 1)
    wanted = 2 / np.pi * np.arcsin(latent.clip(-1, 1))
    np.testing.assert_allclose(np.corrcoef(here.T), wanted, atol=0.04)
    assert np.abs(wanted - np.eye(20)).max() > 0.4


def test_rows_on_the_fly_are_the_same_each_time():
    rows = TREE.rows(jax.random.key(3), 1500)
    assert rows.shape == (1500, 12) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:1100], TREE.rows(jax.random.key(3), 1100))
    assert (rows[:400] != rows[1024:1424]).any()


def test_what_is_no_world():
    for wrong, words in (
        ({"features": 0}, "`features` and `dimension`"),
        ({"least": 0.6}, "`least` and `most`"),
        ({"rank": -1}, "`roots`, `depth` and `rank`"),
        ({"features": 13}, "the trees need 14 features"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(TREE, **wrong)


def knowing(world, order, **changes):
    """An autoencoder whose features are the world's directions, in an order, which must be
    orthonormal: so their pre-activations are the magnitudes."""
    rows = np.asarray(world.directions)[order]
    weights = sae.Weights(
        rows, np.zeros(len(rows)), np.full(len(rows), 1e-3), rows, np.zeros(world.dimension)
    )
    return sae.Autoencoder(weights._replace(**changes))


class Orthonormal(sae.SyntheticWorld):
    """A world in which no directions overlap."""

    @property
    def directions(self):
        return np.eye(self.features, self.dimension, dtype=np.float32)


ORTHONORMAL = Orthonormal(
    features=6, dimension=8, most=0.5, least=0.2, roots=0, rank=0, magnitude_deviation=0.1
)


def test_scores_of_one_that_knows_all():
    order = [3, 0, 5, 1, 4, 2]
    found = sae.synthetic_scores(knowing(ORTHONORMAL, order), ORTHONORMAL, jax.random.key(1), 4096)
    assert isinstance(found, sae.SyntheticScores)
    assert found.l0 == found.true_l0 == pytest.approx(ORTHONORMAL.probabilities.sum(), rel=0.05)
    exact = found._replace(l0=1.0, true_l0=1.0)
    assert tuple(exact) == pytest.approx((1, 1, 1, 1, 1, 1, 1, 1, 0, 1), abs=1e-5)


def test_scores_of_one_that_knows_half_twice_and_shrinks():
    # Features 0, 0, 1, 1 at half their size; the fifth never opens.
    model = knowing(ORTHONORMAL, [0, 0, 1, 1, 2])
    w = model.weights
    model = sae.Autoencoder(
        w._replace(decoder=w.decoder / 4, threshold=w.threshold.at[4].set(100.0))
    )
    found = sae.synthetic_scores(model, ORTHONORMAL, jax.random.key(1), 4096)
    # Matched one to one, two of the five rows are left with a direction that they do not know.
    assert found.mcc == pytest.approx(3 / 5)
    assert found.uniqueness == pytest.approx(2 / 4)
    assert found.dead == pytest.approx(1 / 5)
    assert (found.precision, found.recall, found.f1) == pytest.approx((1, 1, 1))
    assert 0 < found.shrinkage < 0.5 and found.r2 < 1


def test_scores_from_counts():
    """Ten examples. Feature 0: open 4 times, right 3 of them, of 6; feature 1: 2, 0, of 5."""
    found = synthetic._scores(
        np.array([7, 7, 2]), 0.25, 10, np.array([3, 0, 0]), np.array([4, 2, 0]),
        np.array([6, 5, 1]), np.array(5.0), np.array([10.0, 0.0]), np.array(30.0), np.array(8.0),
        np.array(12.0),
    )  # fmt: skip
    assert found.precision == pytest.approx((3 / 4 + 0) / 2)
    assert found.recall == pytest.approx((3 / 6 + 0) / 2)
    assert found.f1 == pytest.approx((6 / 10 + 0) / 2)
    assert found.uniqueness == pytest.approx(1 / 2)
    assert (found.dead, found.mcc) == (pytest.approx(1 / 3), 0.25)
    assert (found.l0, found.true_l0, found.shrinkage) == pytest.approx((0.6, 1.2, 0.8))
    assert found.r2 == pytest.approx(1 - 5 / (30 - 100 / 10))


def test_training_finds_features_of_the_world():
    world = dataclasses.replace(TREE, features=24, dimension=16, rank=3, least=0.05, most=0.2)
    x = world.rows(jax.random.key(0), 6000)
    model = sae.train(x, features=24, l0=1.2, steps=300, sparse=False)
    trained = sae.synthetic_scores(model, world, jax.random.key(9), 2048)
    other = sae.Autoencoder(sae.initial_weights(jax.random.key(5), 24, x[:64], sae.short_run()))
    fresh = sae.synthetic_scores(other, world, jax.random.key(9), 2048)
    assert trained.mcc > fresh.mcc + 0.1 and trained.f1 > fresh.f1 + 0.2 and trained.r2 > 0.6
