"""Rows from folders of shards: .npy and safetensors, in narrow dtypes, across files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrelu import sae

RNG = np.random.default_rng(0)
DTYPES = [np.float32, np.float16, jnp.bfloat16]


def to_safetensors(**arrays):
    """A safetensors file by its published layout, written out here."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    kinds |= {"int32": "I32"}
    header, data = {"__metadata__": {"by": "hand"}}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def folder_of(path, array, lengths, kind):
    """The array cut into files of these lengths: part-1, part-2, ..., part-10."""
    path.mkdir(parents=True)
    start = 0
    for number, length in enumerate(lengths, 1):
        part = array[start : start + length]
        start += length
        if kind == "npy":
            np.save(path / f"part-{number}.npy", part)
        else:
            (path / f"part-{number}.safetensors").write_bytes(to_safetensors(acts=part))
    assert start == len(array)
    (path / "notes.txt").write_text("not a shard")
    return path


LENGTHS = [100, 1, 250, 80, 30, 30, 30, 30, 30, 319]


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_a_folder_is_the_matrix_of_its_files_in_order(tmp_path, dtype, kind):
    array = RNG.normal(size=(900, 24)).astype(dtype)
    wide = array.astype(np.float32)
    rows = sae.open_rows(folder_of(tmp_path / "acts", array, LENGTHS, kind), held_out=90)
    assert (len(rows), rows.dimension, rows.name) == (900, 24, "acts")
    np.testing.assert_array_equal(np.asarray(rows.array[90:420], np.float32), wide[90:420])
    chosen = np.array([899, 3, 100, 101, 350, 3])
    np.testing.assert_array_equal(np.asarray(rows.array[chosen], np.float32), wide[chosen])
    assert rows.array[5:5].shape == (0, 24)
    found = rows.statistics()
    in_memory = sae.Rows(array, held_out=90)
    aside = (wide[:, None] == in_memory.held_out_rows).all(axis=2).any(axis=1)
    norms = np.linalg.norm(wide[~aside], axis=1)
    assert found.mean_norm == pytest.approx(norms.mean(), rel=1e-5)
    assert found.fingerprint == in_memory.fingerprint()
    np.testing.assert_array_equal(rows.held_out_rows, in_memory.held_out_rows)
    model = sae.train(tmp_path / "acts", features=16, l0=3, steps=5)
    again = sae.train(array, features=16, l0=3, steps=1)
    assert model.weights.decoder.shape == again.weights.decoder.shape
    np.testing.assert_allclose(model.encode(wide[:50]), model.encode(array[:50]), atol=1e-6)
    assert sae.evaluate(model, tmp_path / "acts").rows == 900


def test_rows_that_are_not_finite_are_named_with_their_file(tmp_path):
    array = np.zeros((900, 24), np.float32)
    first = sum(LENGTHS[:2]) + 1
    array[first, 3] = array[-1, 0] = np.nan
    rows = sae.open_rows(folder_of(tmp_path / "acts", array, LENGTHS, "npy"))
    file, last = rows.array.names[2], LENGTHS[2]
    assert last > 1 and (tmp_path / "acts" / file).is_file()
    words = rf"acts holds NaN or infinity in rows {first}, 899 \(counted .*; the first is row 1 of "
    with pytest.raises(ValueError, match=words + file):
        rows.statistics()
    array[-1, 0] = 0
    folder_of(tmp_path / "one", array, LENGTHS, "npy")
    words = rf"one holds NaN or infinity in row {first} \(counted from 0; it is row 1 of {file}\)"
    with pytest.raises(ValueError, match=words):
        sae.train(tmp_path / "one", features=4, steps=1)


def test_an_epoch_has_every_row_once_shuffled_across_files_and_the_same_each_time(tmp_path):
    array = np.zeros((900, 256), np.float32)
    array[:, 0] = np.arange(900)
    path = folder_of(tmp_path / "acts", array, LENGTHS, "npy")
    rows = sae.open_rows(path, seed=5)
    size = 90
    epoch = np.concatenate([rows.batch(step, size)[:, 0] for step in range(10)])
    np.testing.assert_array_equal(np.sort(epoch), np.arange(900))
    first = rows.batch(0, size)[:, 0]
    assert len(np.unique(np.searchsorted(np.cumsum(LENGTHS), first, side="right"))) >= 5
    again = sae.open_rows(path, seed=5)
    np.testing.assert_array_equal(again.batch(7, size)[:, 0], epoch[7 * size : 8 * size])


def test_a_group_is_all_that_is_in_memory(tmp_path):
    array = np.zeros((3000, 1024), np.float32)
    array[:, 0] = np.arange(3000)
    path = folder_of(tmp_path / "acts", array, [1000, 1500, 500], "safetensors")
    rows = sae.Rows(sae.open_rows(path).array, group_bytes=4_000_000)
    assert rows.shuffled_together < 1100
    seen = np.concatenate([rows.batch(step, 100)[:, 0] for step in range(600)])
    assert len(np.unique(seen)) == 3000


def test_one_safetensors_file(tmp_path):
    array = RNG.normal(size=(50, 8)).astype(np.float32)
    extra = np.arange(50, dtype=np.int32)
    (tmp_path / "a.safetensors").write_bytes(to_safetensors(ids=extra, acts=array))
    np.testing.assert_array_equal(sae.open_rows(tmp_path / "a.safetensors").array, array)


def damaged(start):
    good = to_safetensors(acts=np.zeros((4, 3), np.float32))
    return {
        "cut": good[:-5],
        "short": good[:6],
        "huge": (1 << 60).to_bytes(8, "little") + good[8:],
        "no json": (5).to_bytes(8, "little") + b"hello",
        "a list": (2).to_bytes(8, "little") + b"[]",
        "shape": good.replace(b"[4, 3]", b"[4, 9]"),
    }[start]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "is cut off"),
        ("short", "no safetensors file, or is cut off"),
        ("huge", "no safetensors file, or is cut off"),
        ("no json", "header that cannot be understood"),
        ("a list", "header that cannot be understood"),
        ("shape", "a shape that its bytes do not have"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, kind, words):
    (tmp_path / "a.safetensors").write_bytes(damaged(kind))
    for path in (tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(ValueError, match=words):
            sae.open_rows(path)


def test_what_does_not_go_together_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.npy and no \.safetensors"):
        sae.open_rows(tmp_path / "none")
    for name, other in (
        ("width", np.zeros((4, 3))),
        ("dtype", np.zeros((4, 5), np.float16)),
        ("axes", np.zeros(4)),
    ):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.zeros((4, 5)))
        np.save(tmp_path / name / "b.npy", other)
        with pytest.raises(ValueError, match=r"do not go together: a\.npy has shape \(4, 5\)"):
            sae.open_rows(tmp_path / name)
    two = to_safetensors(a=np.zeros((2, 2), np.float32), b=np.zeros((2, 2), np.float32))
    (tmp_path / "two.safetensors").write_bytes(two)
    with pytest.raises(ValueError, match=r"should hold one matrix .* but holds 'a', 'b'"):
        sae.open_rows(tmp_path / "two.safetensors")
    ids = to_safetensors(a=np.zeros((2, 2), np.int32))
    (tmp_path / "ids.safetensors").write_bytes(ids)
    with pytest.raises(ValueError, match="holds 'a' as I32"):
        sae.open_rows(tmp_path / "ids.safetensors")
