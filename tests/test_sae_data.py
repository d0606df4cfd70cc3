"""Training data: rows in memory and on disk, image patches, and the planted world."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtrelu import sae


def saved(tmp_path, array, name="acts.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


def numbered(count, dimension=64, dtype=np.float32):
    array = np.zeros((count, dimension), dtype)
    array[:, 0] = np.arange(count)
    return array


def test_rows_in_memory_are_each_seen_once_in_an_epoch():
    rows = sae.Rows(numbered(96), seed=3)
    epochs = [np.concatenate([rows.batch(6 * e + i, 16)[:, 0] for i in range(6)]) for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(96))
    assert (epochs[0] != epochs[1]).any()
    again = sae.Rows(numbered(96), seed=3)
    np.testing.assert_array_equal(again.batch(7, 16), rows.batch(7, 16))
    assert (sae.Rows(numbered(96), seed=4).batch(0, 16) != rows.batch(0, 16)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mapped_rows_are_read_in_groups_and_in_any_order_of_steps(tmp_path, dtype):
    wide = numbered(2000, 1024, dtype)
    group = wide.nbytes // 3
    mapped = np.load(saved(tmp_path, wide), mmap_mode="r")
    rows = sae.Rows(mapped, group_bytes=group)
    assert rows.shuffled_together < 1100  # memory holds one group, not the file
    batches = {step: rows.batch(step, 100) for step in (0, 13, 4, 0)}
    assert batches[13].dtype == np.float32
    fresh = sae.Rows(np.load(tmp_path / "acts.npy", mmap_mode="r"), group_bytes=group)
    np.testing.assert_array_equal(fresh.batch(13, 100), batches[13])
    seen = np.concatenate([rows.batch(step, 100)[:, 0] for step in range(200)])
    assert len(np.unique(seen)) == 2000
    assert len(np.unique(rows.batch(2, 100)[:, 0])) == 100


@pytest.mark.parametrize("held_out", [0, 30])
def test_a_file_that_is_shuffled_whole_gives_the_batches_of_its_array(tmp_path, held_out):
    array = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    in_memory = sae.Rows(array, seed=3, held_out=held_out)
    in_file = sae.open_rows(tmp_path / "x.npy", 3, held_out=held_out)
    assert in_memory.order == in_file.order == "shuffled whole"
    for step in (0, 5, 40):
        np.testing.assert_array_equal(in_memory.batch(step, 16), in_file.batch(step, 16))


def test_another_order_of_the_same_rows_is_another_run(tmp_path):
    array = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    settings = sae.Settings(8, 2, sae.short_run())
    settings = dataclasses.replace(
        settings, recipe=dataclasses.replace(settings.recipe, batch_size=8)
    )
    sae.run(sae.Rows(array), settings, checkpoint_folder=tmp_path / "c", checkpoint_every=1)
    grouped = sae.Rows(mapped, group_bytes=2048)
    longer = dataclasses.replace(settings, steps=3)
    with pytest.raises(ValueError, match="order is shuffled whole there and shuffled in pieces of"):
        sae.run(grouped, longer, checkpoint_folder=tmp_path / "c")


def test_statistics_are_those_of_all_rows(tmp_path):
    array = np.random.default_rng(0).normal(size=(5000, 33)).astype(np.float32)
    norms = np.linalg.norm(array, axis=1)
    done = []
    found = sae.open_rows(saved(tmp_path, array)).statistics(done.append)
    assert found.mean_norm == pytest.approx(norms.mean(), rel=1e-6)
    assert found.mean_square_norm == pytest.approx((norms**2).mean(), rel=1e-6)
    assert sum(done) == 5000


def test_rows_that_are_not_finite_are_named(tmp_path):
    array = np.ones((3000, 8), np.float32)
    array[[17, 2999], 3] = np.nan, np.inf
    for rows in (sae.Rows(array, "acts"), sae.open_rows(saved(tmp_path, array))):
        with pytest.raises(ValueError, match=r"acts.* NaN or infinity in rows 17, 2999 \(counted"):
            rows.statistics()
    one = sae.Rows(np.load(tmp_path / "acts.npy", mmap_mode="r"), group_bytes=1)
    with pytest.raises(ValueError, match=r"rows 17, 2999"):
        one.batch(0, 100)
    array[:, 0] = np.nan
    with pytest.raises(ValueError, match=r"rows 0, 1, 2, .*9 and 2990 more"):
        sae.Rows(array).statistics()


def test_what_is_no_matrix_of_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\). Pass array.reshape"):
        sae.Rows(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"empty: its shape is \(0, 4\)"):
        sae.Rows(np.ones((0, 4)))
    with pytest.raises(TypeError, match="holds complex128"):
        sae.Rows(np.ones((2, 2), complex))
    with pytest.raises(TypeError, match="holds <U1"):
        sae.Rows(np.array([["a", "b"]]))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sae.open_rows(tmp_path / "absent.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="it is a text"):
        sae.open_rows(tmp_path / "text.npy")
    np.savez(tmp_path / "several.npz", a=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"an \.npz of several arrays"):
        sae.open_rows(tmp_path / "several.npz")
    with pytest.raises(ValueError, match="batch of 50 examples is more than the 20 rows"):
        sae.Rows(np.ones((20, 2))).batch(0, 50)
    with pytest.raises(ValueError, match="batch of 21 examples is more than the 20 rows"):
        sae.Rows(np.ones((20, 2))).check_batch(21)


def test_patches_are_white_and_can_be_turned_back_into_pixels():
    patches = sae.image_patches(6000, 8, kept_variance=0.97)
    assert patches.rows.shape == (6000, 64)
    covariance = patches.rows.T @ patches.rows / 6000
    values = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(values[-patches.kept :], 1, atol=1e-3)
    np.testing.assert_allclose(values[: -patches.kept], 0, atol=1e-4)
    pixels = patches.rows @ patches.unwhiten
    np.testing.assert_allclose(pixels.mean(axis=1), 0, atol=1e-3)
    assert 0.05 < pixels.std() < 0.5
    same = sae.image_patches(6000, 8, kept_variance=0.97)
    np.testing.assert_array_equal(same.rows, patches.rows)
    with pytest.raises(ValueError, match="`count` should be at least 128"):
        sae.image_patches(100, 8)
    with pytest.raises(ValueError, match="`size` should be between"):
        sae.image_patches(1000, 1)


def test_planted_world_is_as_described():
    world = sae.PlantedWorld(features=60, dimension=20, mean_l0=4.0, noise=0.0)
    x, magnitudes = map(np.asarray, world.sample(jax.random.key(0), 20_000))
    present = magnitudes > 0
    np.testing.assert_allclose(present.mean(0), world.probabilities, atol=0.02)
    assert present.sum(1).mean() == pytest.approx(4, rel=0.03)
    ratio = world.probabilities[1] / world.probabilities[7]
    assert ratio == pytest.approx(4**0.7, rel=1e-5)  # ranks 2 and 8
    np.testing.assert_allclose(np.linalg.norm(world.directions, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(x, magnitudes @ np.asarray(world.directions), atol=1e-4)
    with pytest.raises(ValueError, match="`mean_l0`"):
        sae.PlantedWorld(features=10, mean_l0=9)


@pytest.mark.parametrize("features", [60, 90])
def test_an_autoencoder_of_the_worlds_seed_does_not_start_at_the_answer(features):
    """With one key for both, |cosine| would be 1: and was, for every row that both drew."""
    world = sae.PlantedWorld(features=60, dimension=40, mean_l0=4.0, seed=3)
    sample = np.zeros((8, 40), np.float32)
    start = sae.initial_weights(jax.random.key(3), features, sample, sae.gemma_scope()).decoder
    cosine = np.abs(np.asarray(world.directions) @ np.asarray(start).T)
    assert cosine.max() < 0.8


def test_planted_scores():
    world = sae.PlantedWorld(features=30, dimension=20, mean_l0=3.0)
    _, magnitudes = world.sample(jax.random.key(0), 2000)
    present = np.asarray(magnitudes) > 0
    order = np.random.default_rng(0).permutation(30)
    truth = np.asarray(world.directions)
    perfect = sae.planted_scores(-2 * truth[order], present[:, order], truth, present)
    assert tuple(perfect) == pytest.approx((1, 1, 1, 1))
    half = sae.planted_scores(truth[:15], present[:, :15], truth, present)
    assert tuple(half) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    always = sae.planted_scores(truth, np.ones_like(present), truth, present)
    assert always.recall == pytest.approx(1)
    assert always.precision == pytest.approx(present.mean(), rel=1e-5)


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_kept_aside_are_in_no_batch_and_the_same_for_every_seed(tmp_path, mapped):
    array = plain = numbered(2000, 256)
    if mapped:
        array = np.load(saved(tmp_path, array), mmap_mode="r")
    found = [sae.Rows(array, seed=seed, held_out=160, group_bytes=600_000) for seed in (0, 1)]
    aside = [rows.held_out_rows[:, 0] for rows in found]
    np.testing.assert_array_equal(*aside)
    # And the same of a file as of the array that it holds.
    np.testing.assert_array_equal(aside[0], sae.Rows(plain, held_out=160).held_out_rows[:, 0])
    assert len(aside[0]) == pytest.approx(160, rel=0.15)
    assert len(aside[0]) + found[0].training_rows == 2000
    assert np.ptp(aside[0]) > 1500  # from all over the data
    seen = {r for step in range(150) for r in found[0].batch(step, 60)[:, 0].tolist()}
    assert not seen & set(aside[0].tolist())
    assert len(seen) == found[0].training_rows
    statistics = found[0].statistics()
    kept = np.setdiff1d(np.arange(2000), aside[0].astype(int))
    assert statistics.mean_norm == pytest.approx(kept.mean())
    assert statistics.variance == pytest.approx(kept.var())
    assert statistics.fingerprint == found[0].fingerprint() == sae.Rows(array).fingerprint()
    with pytest.raises(ValueError, match="`held_out` should leave some"):
        sae.Rows(array, held_out=2000)


@pytest.mark.parametrize("count", [1, 37, 160, 1200, 1999])
def test_rows_kept_aside_have_their_share_of_each_part_of_the_data(count):
    """Else they are judged by another mixture than that which batches are made of."""
    aside = sae.Rows(numbered(2000, 4), held_out=count).held_out_rows[:, 0]
    assert len(np.unique(aside)) == len(aside) == pytest.approx(count, rel=0.15, abs=1)
    parts = np.histogram(aside, 10, (0, 2000))[0]
    assert np.abs(parts - len(aside) / 10).max() <= max(2, 2 * (count // 128))


def test_rows_kept_aside_of_patches_come_from_both_photographs_alike():
    # 100,000 rows, as `jaxtrelu sae` draws them: one photograph, then the other.
    rows = sae.Rows(np.arange(100_000, dtype=np.float32)[:, None].repeat(144, 1), held_out=8192)
    first = (rows.held_out_rows[:, 0] < 50_000).mean()
    assert first == pytest.approx(0.5, abs=0.01)


def test_variance_is_found_far_from_the_origin():
    array = np.random.default_rng(0).normal(size=(5000, 3)) + 1e6
    assert sae.Rows(array).statistics().variance == pytest.approx(array.var(0).sum(), rel=1e-6)
    assert sae.Rows(np.full((500, 3), 1e6)).statistics().variance == 0
