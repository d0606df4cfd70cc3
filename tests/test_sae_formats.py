"""Files of autoencoders: golden ones of other libraries, round trips, and hostile ones."""

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st

from jaxtrelu import Gaussian, Rectangle, Sigmoid, Triangle, sae
from jaxtrelu.__main__ import main
from jaxtrelu.sae._formats import npz, safetensors, torch_file

GOLDEN = Path(__file__).parent / "golden" / "sae"
GOOD = sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.npz").exists())
FORMATS = (
    "jaxtrelu", "gemma_scope", "gemma_scope_2", "saelens", "dictionary_learning",
    "dictionary_learning_batch_top_k", "llama_scope", "circuit_tracer",
)  # fmt: skip


def golden(name):
    """The path to load, of a folder of golden files."""
    layers = list((GOLDEN / name).glob("layer_*.safetensors"))
    return layers[0] if layers else GOLDEN / name


def random(shape, seed=0, scale=0.6):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def model(m=7, d=5, out=None, *, skip=False, seed=0, **settings):
    out = d if out is None else out
    weights = sae.Weights(
        random((m, d), seed),
        random(m, seed + 1),
        np.abs(random(m, seed + 2)),
        random((m, out), seed + 3),
        random(out, seed + 4),
    )
    return sae.Autoencoder(weights, random((d, out), seed + 5) if skip else None, **settings)


def assert_same_function(first, second, exactly=False):
    x = random((40, first.dimension), 9, 1.5)
    a, b = (np.asarray(m.encode(x)) for m in (first, second))
    clear = np.abs(np.asarray(first.pre_activations(x)) - np.asarray(first.threshold)) > 1e-5
    np.testing.assert_array_equal((a > 0)[clear], (b > 0)[clear])
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(np.where(clear, b, 0), np.where(clear, a, 0), **tolerance)
    outs = [np.asarray(m(x))[clear.all(1)] for m in (second, first)]
    np.testing.assert_allclose(*outs, **tolerance)


# --- files of other libraries --------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_golden_files_load_and_encode_gate_for_gate(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sae.load(golden(name))
    with np.load(GOLDEN / name / "expected.npz") as expected:
        features = np.asarray(found.encode(expected["x"]))
        np.testing.assert_array_equal(features > 0, expected["features"] > 0)
        assert 0.1 < (features > 0).mean() < 0.9
        np.testing.assert_allclose(features, expected["features"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found(expected["x"]), expected["output"], rtol=1e-5, atol=1e-5)
        decoded = found.decode(features, expected["x"])
        np.testing.assert_allclose(decoded, expected["output"], rtol=1e-5, atol=1e-5)


def test_golden_files_are_of_every_kind():
    assert len(GOOD) >= 19
    models = {name: sae.load(golden(name)) for name in GOOD}
    assert {m.normalisation for m in models.values()} == {
        "none", "layer_norm", "constant_norm_rescale"
    }  # fmt: skip
    assert {m.subtract_decoder_bias for m in models.values()} == {True, False}
    skips = {name for name, m in models.items() if m.skip is not None}
    assert skips == {"gemma_scope_2", "circuit_tracer", "saelens_skip_transcoder"}
    wide = {name for name, m in models.items() if m.output_dimension != m.dimension}
    assert wide == {"saelens_skip_transcoder", "saelens_transcoder"}
    assert models["saelens_old"].about["saelens"]["metadata"]["hook_layer"] == 3
    assert models["dictionary_learning_batch_top_k"].about["dictionary_learning"]["k"] == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused_saelens_topk", "architecture is 'topk', and top-k keeps the k largest"),
        ("refused_topk", "AutoEncoderTopK, which keeps the k largest"),
        ("refused_unset", "its threshold is not set"),
    ],
)
def test_files_without_a_threshold_are_refused_with_the_reason(name, words):
    with pytest.raises(ValueError, match=words):
        sae.load(GOLDEN / name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalize_activations": "covariance_whitening"}, "fold it with SAELens's"),
        ({"normalize_activations": "new"}, "normalize_activations is 'new'"),
        ({"architecture": "gated"}, "architecture is 'gated'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"architecture": "standard"}, "is a ReLU, which has no thresholds, and there is a tensor"),
        ({"d_in": 99}, r"cfg.json says d_in 99, and its weights have \d+"),
        ({"d_sae": 99}, r"cfg.json says d_sae 99, and its weights have \d+"),
    ],
)
def test_settings_of_saelens_that_are_not_known(tmp_path, changes, words):
    write_saelens_with(tmp_path, changes)
    with pytest.raises(ValueError, match=words):
        sae.load(tmp_path)


def write_saelens_with(folder, changes):
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / name).write_bytes((GOLDEN / "saelens" / name).read_bytes())
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **changes}))


def test_what_is_missing_of_a_folder_of_saelens(tmp_path):
    names = ("cfg.json", "sae_weights.safetensors")
    for name, other in (names, names[::-1]):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes((GOLDEN / "saelens" / name).read_bytes())
        for path in (folder, folder / name):
            with pytest.raises(ValueError, match=f"{name} alone, .* half of .* {other} is missing"):
                sae.load(path)
    write_saelens_with(tmp_path, {})
    arrays, _ = safetensors.read(tmp_path / names[1])
    rest = {name: array for name, array in arrays.items() if name != "threshold"}
    (tmp_path / names[1]).write_bytes(safetensors.to_bytes(rest))
    with pytest.raises(ValueError, match="it has neither threshold nor log_threshold"):
        sae.load(tmp_path)


def test_versions_in_a_folder_of_saelens_are_what_they_say(tmp_path):
    """The format's, which SAELens asks for, and the one it was trained with only where it was."""

    def written(model):
        sae.save(model, tmp_path / "there", format="saelens")
        return json.loads((tmp_path / "there" / "cfg.json").read_text())["metadata"]

    own = {"sae_lens_version": "6.0.0", "written_by": "jaxtrelu", "sae_lens_training_version": None}
    assert written(model()) == own
    known = {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.1.0", "hook_name": "h"}
    theirs = model(about={"saelens": {"metadata": known}})
    assert written(theirs) == {**known, "written_by": "jaxtrelu"}
    further = model(about={"saelens": {"metadata": known}, "training": {"steps": 5}})
    assert written(further)["sae_lens_training_version"] is None
    old = model(about={"saelens": {"metadata": {"sae_lens_version": "5.2.1"}}})
    assert written(old)["sae_lens_version"] == "6.0.0"


def test_what_is_no_path():
    for call in (sae.load, lambda path: sae.save(model(), path)):
        with pytest.raises(TypeError, match=r"`path` should be the path of a file .* but is 3"):
            call(3)


@pytest.mark.parametrize("rule", ["expected_average_only_in", True])
def test_an_input_scale_that_saelens_left_out_is_said(tmp_path, rule):
    write_saelens_with(tmp_path, {"normalize_activations": rule})
    with pytest.warns(UserWarning, match="should be scaled before"):
        found = sae.load(tmp_path)
    assert_same_function(sae.load(GOLDEN / "saelens"), found, exactly=True)


@pytest.mark.skipif(
    "JAXTRELU_PEERS" not in os.environ, reason="JAXTRELU_PEERS names no interpreter"
)
def test_files_written_here_load_there(tmp_path):
    """JAXTRELU_PEERS is a Python with the libraries; see golden/sae_peers.py."""
    kinds = {
        "saelens": model(**scales(3.0)),
        "saelens_subtracting": model(subtract_decoder_bias=True),
        "saelens_layer_norm": model(normalisation="layer_norm"),
        "saelens_constant_norm": model(normalisation="constant_norm_rescale"),
        "saelens_transcoder": model(out=4),
        "saelens_skip": model(out=4, skip=True),
        "dictionary_learning": model(**scales(3.0)),
        "dictionary_learning_batch_top_k": sae.load(GOLDEN / "dictionary_learning_batch_top_k"),
        "gemma_scope_2": model(skip=True),
        "circuit_tracer": model(out=4, skip=True),
        "jaxtrelu": model(),
    }
    for name, kind in kinds.items():
        folder = tmp_path / name
        folder.mkdir()
        format = next(f for f in sorted(FORMATS, key=len, reverse=True) if name.startswith(f))
        sae.save(kind, folder, format=format)
        x = random((60, kind.dimension), 9, 1.5)
        np.savez(folder / "expected.npz", x=x, features=kind.encode(x), output=kind(x))
    figures = sae.evaluate(model(), random((60, 5), 9, 1.5)).to_saebench(model())
    (tmp_path / "saebench.json").write_text(json.dumps(figures))
    script = Path(__file__).parent / "golden" / "sae_peers.py"
    command = [os.environ["JAXTRELU_PEERS"], str(script), "check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert len(done.stdout.splitlines()) == len(kinds) + 1


def scales(scale):
    return {"input_scale": scale, "output_scale": scale}


# --- round trips ---------------------------------------------------------------------------------

SURROGATES = [kind(0.25, to_input=flag) for kind, flag in zip(
    (Rectangle, Triangle, Gaussian, Sigmoid), (True, False, True, False), strict=True
)]  # fmt: skip


@given(
    st.sampled_from([1, 7]),
    st.just(5),
    st.sampled_from([None, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.37, 12.5]),
    st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
    st.sampled_from([None, *SURROGATES]),
    st.integers(0, 5),
)
@examples(40)
def test_the_own_file_holds_everything(
    tmp_path_factory, m, d, out, skip, subtract, scale, rule, surrogate, seed
):
    out = d if rule != "none" or subtract else out
    recipe = None
    if surrogate is not None:
        recipe = dataclasses.replace(
            sae.anthropic_2025(), surrogate=surrogate, clip_norm=0.1 + seed
        )
    first = model(
        m, d, out, skip=skip, seed=seed, input_scale=scale, output_scale=2 * scale,
        normalisation=rule, subtract_decoder_bias=subtract, recipe=recipe,
        about={"layer": 3, "of": ["θ", None, 1.5]},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("own") / "any name"
    assert sae.save(first, path) == [path]
    second = sae.load(path)
    for name, a, b in zip(sae.Weights._fields, first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert (first.skip is None) == (second.skip is None)
    for field in (
        "input_scale",
        "output_scale",
        "normalisation",
        "subtract_decoder_bias",
        "recipe",
    ):
        assert getattr(first, field) == getattr(second, field)
    assert second.about == first.about
    if skip:
        np.testing.assert_array_equal(first.skip, second.skip)


@pytest.mark.parametrize("format", FORMATS)
@given(
    st.sampled_from([(7, 5), (4, 5), (5, 5)]),
    st.sampled_from([None, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.37, 12.5]),
    st.integers(0, 3),
)
@examples(12)
def test_round_trips_keep_the_function(tmp_path_factory, format, size, out, skip, sub, scale, seed):
    """Or are refused, with the reason."""
    out = None if sub else out
    first = model(
        *size, out, skip=skip, seed=seed, input_scale=scale, output_scale=scale,
        subtract_decoder_bias=sub, about={"dictionary_learning": {"k": 2}},
    )  # fmt: skip
    if format in ("llama_scope", "dictionary_learning_batch_top_k"):
        level = np.full(size[0], 0.3, np.float32)
        first = dataclasses.replace(first, weights=first.weights._replace(threshold=level))
    path = tmp_path_factory.mktemp("trip")
    has_skip = {"jaxtrelu", "gemma_scope_2", "saelens", "circuit_tracer"}
    has_width = has_skip | {"gemma_scope"}
    wide = first.output_dimension != first.dimension
    assert first.is_transcoder == (wide or skip)
    if (skip and format not in has_skip) or (wide and format not in has_width):
        with pytest.raises(ValueError, match=r"has no place for a (skip|transcoder)"):
            sae.save(first, path, format=format)
        assert not list(path.iterdir())
        return
    files = sae.save(first, path, format=format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features and dimensions of one number
        assert_same_function(first, sae.load(path))
    assert files[0].is_relative_to(path)
    assert not [p for p in path.rglob("*") if p.name.endswith(".part")]


@pytest.mark.parametrize("name", GOOD)
def test_golden_files_survive_the_own_format_and_their_own(tmp_path, name):
    first = sae.load(golden(name))
    sae.save(first, tmp_path / "own")
    assert_same_function(first, sae.load(tmp_path / "own"), exactly=True)
    format = next((f for f in sorted(FORMATS, key=len, reverse=True) if name.startswith(f)), None)
    if name == "llama_scope_r1":  # a threshold of each feature, which the older form has not
        with pytest.raises(ValueError, match="one threshold for all features"):
            sae.save(first, tmp_path / "back", format=format)
        return
    back = sae.save(first, tmp_path / "back", format=format)
    assert_same_function(first, sae.load(back[0] if len(back) == 1 else tmp_path / "back"))


def test_normalisation_that_no_weights_express_is_refused(tmp_path):
    first = model(normalisation="layer_norm")
    for format in ("gemma_scope", "dictionary_learning", "llama_scope", "circuit_tracer"):
        with pytest.raises(ValueError, match=r"normalises each|normalisation row by row|one th"):
            sae.save(first, tmp_path / "file", format=format)
    sae.save(first, tmp_path / "lens", format="saelens")
    assert_same_function(first, sae.load(tmp_path / "lens"), exactly=True)
    with pytest.raises(ValueError, match="`format` should be one of jaxtrelu, gemma_scope"):
        sae.save(first, tmp_path / "x", format="onnx")
    scaled = model(normalisation="layer_norm", input_scale=2.0)
    with pytest.raises(ValueError, match="no place for a scale"):
        sae.save(scaled, tmp_path / "x", format="saelens")


def test_the_file_of_the_first_release_is_read(tmp_path):
    first = model(**scales(2.5))
    arrays = {name: np.asarray(value) for name, value in first.weights._asdict().items()}
    np.savez(tmp_path / "sae.npz", input_scale=np.float32(2.5), recipe="short_run", **arrays)
    assert_same_function(first, sae.load(tmp_path / "sae.npz"), exactly=True)


def test_a_matrix_that_a_release_turned_round_is_told_by_its_shape(tmp_path):
    first = model(7, 5)
    sae.save(first, tmp_path / "p.npz", format="gemma_scope")
    arrays = npz.read(tmp_path / "p.npz")
    turned = {**arrays, "W_enc": arrays["W_enc"].T, "W_dec": arrays["W_dec"].T}
    np.savez(tmp_path / "turned.npz", **turned)
    assert_same_function(first, sae.load(tmp_path / "turned.npz"), exactly=True)
    square = model(5, 5)
    sae.save(square, tmp_path / "square.npz", format="gemma_scope")
    with pytest.warns(UserWarning, match=r"as many features as dimensions \(5\)"):
        found = sae.load(tmp_path / "square.npz")
    assert_same_function(square, found, exactly=True)


def test_a_surrogate_of_ones_own_is_refused_in_words(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(Rectangle):
        pass

    recipe = dataclasses.replace(sae.short_run(), surrogate=Mine(0.5))
    with pytest.raises(ValueError, match="Mine of the recipe is not one of the library's"):
        sae.save(model(recipe=recipe), tmp_path / "x")


# --- hostile files -------------------------------------------------------------------------------


def assert_refused(path, words):
    """One sentence that names the file; nothing was run."""
    with pytest.raises(ValueError, match=words) as caught:
        sae.load(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text and text.endswith(".") and "Traceback" not in text


@pytest.mark.parametrize("where", [0.0, 0.02, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("format", FORMATS[:3])
def test_a_truncated_file_is_refused(tmp_path, where, format):
    (file,) = sae.save(model(), tmp_path / "file.npz", format=format)
    data = file.read_bytes()
    file.write_bytes(data[: int(where * len(data))])
    assert_refused(file, r"damaged|empty|ends too early|cannot be loaded")


def test_any_flipped_byte_of_the_own_file_is_noticed(tmp_path):
    (file,) = sae.save(model(recipe=sae.short_run()), tmp_path / "m.safetensors")
    data = bytearray(file.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(data), 150):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(place) % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            sae.load(file)


def test_a_newer_file_is_refused(tmp_path):
    (file,) = sae.save(model(), tmp_path / "m.safetensors")
    tensors, metadata = safetensors.read(file)
    file.write_bytes(safetensors.sealed(tensors, {**metadata, "version": "2"}))
    assert_refused(file, r"newer version of jaxtrelu \(format 2\)")


def header(length, text):
    return length.to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        header(2**63, "{}"),
        header(99, "{}"),
        header(2, "{]"),
        header(4, "[[]]"),
        header(2, "{}"),
        header(57, '{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}  '),
        header(70, '{"a":{"dtype":"F32","shape":[999999999999],"data_offsets":[0,36]}}    '),
        header(57, '{"a":{"dtype":"F99","shape":[0],"data_offsets":[0,0]}}   '),
        header(57, '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}  '),
        header(16, '{"__metadata__":'),
        header(100_000, "[" * 100_000),
    ],
)
def test_absurd_safetensors_are_refused(tmp_path, data):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(data)
    assert_refused(file, r"damaged|no known autoencoder")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("W_enc", np.zeros((5, 8), np.float32), "with no axis of 7 features"),
        ("W_dec", np.zeros((7, 4), np.float32), r"its W_dec has shape \(7, 4\)"),
        ("threshold", np.zeros(6, np.float32), "`threshold` should have shape"),
        ("b_enc", np.zeros((7, 1), np.float32), "are no vectors"),
        ("b_dec", np.full(5, np.nan, np.float32), "decoder_bias holds NaN"),
        ("W_enc", np.full((5, 7), np.inf, np.float32), "encoder holds NaN or infinity"),
        ("threshold", np.full(7, np.nan, np.float32), "threshold holds NaN"),
        ("W_enc", np.array(["a"] * 35).reshape(5, 7), "its W_enc holds <U1"),
        ("W_enc", None, "no W_enc|no known autoencoder"),
        ("threshold", None, "has no threshold"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, name, value, words):
    sae.save(model(), tmp_path / "p.npz", format="gemma_scope")
    arrays = {**npz.read(tmp_path / "p.npz"), name: value}
    np.savez(tmp_path / "p.npz", **{k: v for k, v in arrays.items() if v is not None})
    assert_refused(tmp_path / "p.npz", words)


def npy(text):
    data = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (pickle.dumps([1]), "is a pickle, which is never loaded"),
        (b"hello", "does not begin as"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"),
            r"says shape \(-1, 4\)",
        ),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**9,)}"), "cannot be read"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}"), "and has 129"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "pickled objects"),
        (npy("__import__('os').system('false')"), "cannot be read"),
    ],
)
def test_npz_members_that_are_no_arrays_are_refused(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("W_enc.npy", member)
    assert_refused(tmp_path / "p.npz", words)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/jaxtrelu-was-here",)


def pt(path, program, **others):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in others.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return path


def storage_program(shape, strides, count, offset=0):
    def number(value):
        return b"\x8a\x08" + int(value).to_bytes(8, "little", signed=True)

    return b"".join(
        [b"\x80\x02}X\x05\x00\x00\x00W_encctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00",
         b"storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu", number(count),
         b"tQ", number(offset), b"(", *map(number, shape), b"t(", *map(number, strides),
         b"t\x89ccollections\nOrderedDict\n)RtRs."]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (pickle.dumps(Evil(), 2), r"asks for (posix|nt)\.system"),
        (pickle.dumps(Evil(), 5), r"asks for (posix|nt)\.system"),
        (pickle.dumps({"a": print}, 2), r"asks for (__builtin__|builtins)\.print"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "asks for builtins.eval"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "holds a name where a value should be"),
        (b"(S'x'\nios\nsystem\n.", "instruction INST"),
        (b"\x80\x02}", "ends too early|damaged"),
        (b"\x80\x02u.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"", "ends too early|damaged"),
        (pickle.dumps([1, 2]), "no dictionary of tensors"),
        (storage_program((2, 2), (2, 1), 1000), "has 16 bytes for 1,000 numbers"),
        (storage_program((9, 9), (9, 1), 4), "larger than its storage"),
        (storage_program((10**6, 10**6), (0, 0), 4), "larger than its storage"),
        (storage_program((2, 2), (10**9, 1), 4), "larger than its storage"),
        (storage_program((2, 2), (2, 1), 4, 1), "larger than its storage"),
        (storage_program((-2, 2), (2, 1), 4), "shape cannot be understood"),
        (storage_program((2, 2), (2, 1), -4), "not known"),
    ],
)
def test_pickles_that_are_no_tensors_are_refused_and_not_run(tmp_path, program, words):
    assert_refused(pt(tmp_path / "ae.pt", program, _0=np.ones(4, np.float32).tobytes()), words)
    assert not Path("/tmp/jaxtrelu-was-here").exists()


def test_bare_and_nested_pickles_are_refused(tmp_path):
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Evil()))
    assert_refused(tmp_path / "ae.pt", "bare pickle, as torch.save wrote it before version 1.6")
    lists = b"\x80\x02]" + b"q\x00h\x00h\x00\x86" * 60 + b"."  # 2^60 values, if one counts them
    assert_refused(pt(tmp_path / "ae.pt", lists), "no dictionary of tensors")
    itself = b"\x80\x02]q\x00h\x00a."
    assert_refused(pt(tmp_path / "ae.pt", itself), "no dictionary of tensors")


def test_a_compressed_storage_is_refused(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", storage_program((2, 2), (2, 1), 4))
        archive.writestr("archive/data/0", bytes(10**7))
    (tmp_path / "ae.pt").write_bytes(stream.getvalue())
    assert_refused(tmp_path / "ae.pt", "data/0 is compressed")


@given(st.integers(0, 2**31))
@examples(40)
def test_a_damaged_pt_file_never_ends_in_a_traceback(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    data = bytearray((GOLDEN / "dictionary_learning" / "ae.pt").read_bytes())
    for place in rng.integers(0, len(data), rng.integers(1, 6)):
        data[place] = rng.integers(256)
    file = tmp_path_factory.mktemp("pt") / "ae.pt"
    file.write_bytes(data)
    try:
        sae.load(file)
    except ValueError as error:
        text = str(error)
    else:
        return
    assert text.endswith(".") and "ae.pt" in text


def test_torch_files_hold_numbers_texts_and_containers(tmp_path):
    found = torch_file.read(GOLDEN / "dictionary_learning_mid_run" / "ae.pt")
    assert found["step"] == 7 and found["norm_factor"] == 2.0
    assert found["config"] == {"lr": 1e-3, "wandb_name": None, "steps": [1, 2]}
    arrays = {"a": random((3, 4)), "b": np.arange(5), "c": np.float32(2.5), "d": np.zeros((0, 3))}
    (tmp_path / "t.pt").write_bytes(torch_file.to_bytes(arrays))
    back = torch_file.read(tmp_path / "t.pt")
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def test_folders_and_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        sae.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "holds none of the known files")
    (tmp_path / "text.txt").write_text("hello, this is a text")
    assert_refused(tmp_path / "text.txt", "none of the known kinds of files")
    (tmp_path / "cfg.json").write_text("{")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    assert_refused(tmp_path, "its cfg.json is no JSON")
    (tmp_path / "sparsify").mkdir()
    for name in ("cfg.json", "sae.safetensors"):
        (tmp_path / "sparsify" / name).write_text("{}")
    assert_refused(tmp_path / "sparsify", "sparsify|damaged")
    clt = {"w_enc": random((5, 7)), "w_dec": random((7, 3, 5)), "b_enc": random(7)}
    clt |= {"b_dec": random((3, 5)), "threshold": random(7)}
    (tmp_path / "clt.safetensors").write_bytes(safetensors.to_bytes(clt))
    assert_refused(tmp_path / "clt.safetensors", "decoder writes to 3 layers")


def test_a_folder_of_layers(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in ("there", "new"):
        (file,) = sae.save(model(), tmp_path / folder, format="circuit_tracer")
        assert file == tmp_path / folder / "layer_0.safetensors"
        assert_same_function(model(), sae.load(tmp_path / folder), exactly=True)
    for layer in range(2, 12):
        path = tmp_path / "new" / f"layer_{layer}.safetensors"
        assert sae.save(model(), path, format="circuit_tracer") == [path]
    names = "layer_0.safetensors, layer_2.safetensors, .*layer_8.safetensors and 3 more"
    assert_refused(tmp_path / "new", rf"several layers \({names}\); pass the path of one")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"hf_hook_point_in": "layers.3.mlp.in", "hf_hook_point_out": "layers.3.mlp.out"}, True),
        ({"hf_hook_point_in": "layers.3.out", "hf_hook_point_out": "layers.3.out"}, False),
        ({"affine_connection": True}, True),
        ({"affine_connection": False}, False),
    ],
)
def test_a_transcoder_of_gemma_scope_2_is_told_by_its_config(tmp_path, said, expected):
    sae.save(model(), tmp_path / "params.safetensors", format="gemma_scope_2")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", **said}))
    assert sae.load(tmp_path).is_transcoder is expected


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    sae.save(model(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    with pytest.raises(OSError, match="cannot write to"):
        sae.save(model(), tmp_path / "m.safetensors" / "inside")
    assert (tmp_path / "m.safetensors").read_bytes() == before


# --- the command ---------------------------------------------------------------------------------


def test_convert(tmp_path, capsys):
    sae.save(model(subtract_decoder_bias=True), tmp_path / "m.safetensors")
    words = ["sae", "convert", str(tmp_path / "m.safetensors"), str(tmp_path / "out")]
    assert main([*words, "--to", "saelens"]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(p).name for p in written] == ["cfg.json", "sae_weights.safetensors"]
    assert_same_function(
        sae.load(tmp_path / "m.safetensors"), sae.load(tmp_path / "out"), exactly=True
    )


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("circuit_tracer", "layer_0.safetensors"),
        ("gemma_scope_2", "params.safetensors"),
        ("gemma_scope", "params.npz"),
    ],
)
def test_convert_to_a_new_name(tmp_path, capsys, format, name):
    """Without a suffix a folder, in which the file has the name that others look for."""
    sae.save(model(), tmp_path / "m")
    words = ["sae", "convert", str(tmp_path / "m")]
    assert main([*words, str(tmp_path / "new.1"), "--to", format]) == 0
    assert main([*words, str(tmp_path / f"other{Path(name).suffix}"), "--to", format]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [tmp_path / "new.1" / name, tmp_path / f"other{Path(name).suffix}"]
    for path in (tmp_path / "new.1", *written):
        assert_same_function(model(), sae.load(path), exactly=True)


def test_convert_says_what_is_wrong_in_one_line(tmp_path, capsys):
    sae.save(model(skip=True), tmp_path / "m")
    sae.save(model(), tmp_path / "plain")
    for words, text in (
        (["absent", "out", "--to", "saelens"], "there is no file or folder 'absent'"),
        ([str(GOLDEN / "refused_topk"), "out", "--to", "saelens"], "keeps the k largest"),
        ([str(tmp_path / "m"), str(tmp_path / "o"), "--to", "gemma_scope"], "no place for a skip"),
        ([str(tmp_path / "m"), "out", "--to", "onnx"], "invalid choice: 'onnx'"),
        (
            [str(tmp_path / "plain"), "out", "--to", "dictionary_learning_batch_top_k"],
            "pass --to dictionary_learning for",
        ),
    ):
        assert main(["sae", "convert", *words]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1


def test_the_reader_needs_no_torch():
    code = (
        "import sys; from jaxtrelu import sae; "
        f"sae.load({str(GOLDEN / 'dictionary_learning')!r}); "
        "assert not {'torch', 'safetensors', 'pandas'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
