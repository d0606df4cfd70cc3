"""The report: its figures, decoded from the page; and the page in a browser, where there is one."""

import base64
import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxtrelu import sae
from jaxtrelu.__main__ import main

RNG = np.random.default_rng(0)
X = RNG.normal(size=(700, 12)).astype(np.float32)


def model_of(features, dimension=12, seed=0):
    """Random weights; feature 1 never opens."""
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(features, dimension)).astype(np.float32)
    encoder = decoder + 0.1 * rng.normal(size=decoder.shape)
    threshold = rng.uniform(2, 6, features)
    threshold[1] = 1e6
    bias = rng.normal(size=features)
    return sae.Autoencoder(
        sae.Weights(encoder, bias, threshold, decoder, np.zeros(dimension)), input_scale=1.5
    )


def decoded(path):
    """What the page holds: (its description, its arrays)."""
    page = path.read_text(encoding="utf-8")
    about = json.loads(re.search(r'id="about">(.*?)</script>', page, re.DOTALL)[1])
    data = base64.b64decode(re.search(r'id="bytes">(.*?)</script>', page)[1], validate=True)
    arrays = {}
    for name, (dtype, place, size) in about["arrays"].items():
        assert place % 8 == 0
        arrays[name] = np.frombuffer(data, dtype, size, place)
    return about, arrays


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = model_of(20)
    path = sae.report(model, X, tmp_path_factory.mktemp("report") / "report.html")
    return model, *decoded(path)


def test_figures_of_every_feature(plain):
    model, about, arrays = plain
    w = model.weights
    pi = 1.5 * X @ np.asarray(w.encoder).T + np.asarray(w.encoder_bias)
    values = np.where(pi > np.asarray(w.threshold), pi, 0)
    counts = (values > 0).sum(0)
    assert (about["features"], about["rows"], about["looked"]) == (20, 700, 700)
    np.testing.assert_allclose(arrays["density"], counts / 700, rtol=1e-6)
    np.testing.assert_allclose(arrays["mean"], values.sum(0) / np.maximum(counts, 1), rtol=1e-5)
    np.testing.assert_allclose(arrays["largest"], values.max(0), rtol=1e-5)
    assert arrays["density"][1] == 0 and (arrays["density"] > 0).sum() > 10
    assert dict(about["metrics"])["l0"] == pytest.approx(counts.sum() / 700, rel=1e-6)


def test_histograms_hold_every_row_once(plain):
    model, _, arrays = plain
    pi = np.asarray(model.pre_activations(X), np.float64)
    histogram = arrays["histogram"].reshape(20, -1)
    assert (histogram.sum(1) == 700).all()
    for i in range(20):
        low, high = float(arrays["low"][i]), float(arrays["high"][i])
        assert (low, high) == pytest.approx((pi[:, i].min(), pi[:, i].max()), rel=1e-5)
        edges = np.linspace(low, high, histogram.shape[1] + 1)
        wanted = np.histogram(pi[:, i].clip(low, high), edges)[0]
        assert np.abs(histogram[i] - wanted).sum() <= 4  # at the edges, by rounding


def test_top_rows_and_their_largest_entries(plain):
    model, _, arrays = plain
    rows, values = (arrays[name].reshape(20, -1) for name in ("topRows", "topValues"))
    places, kept = arrays["topPlaces"].reshape(20, -1), arrays["kept"]
    for i in range(20):
        wanted = model.top_rows(X, i, rows.shape[1])
        count = len(wanted.rows)
        np.testing.assert_array_equal(rows[i, :count], wanted.rows)
        np.testing.assert_allclose(values[i, :count], wanted.values, rtol=1e-6)
        assert (rows[i, count:] == -1).all() and (places[i, count:] == -1).all()
        np.testing.assert_array_equal(kept[places[i, :count]], wanted.rows)
    entries = arrays["entries"].reshape(len(kept), -1)
    order = np.argsort(-np.abs(X[kept.astype(int)]), axis=1)[:, : entries.shape[1]]
    np.testing.assert_array_equal(entries, order)
    np.testing.assert_array_equal(
        arrays["entryValues"].reshape(entries.shape),
        np.take_along_axis(X[kept.astype(int)], entries, 1),
    )


def test_nearest_decoder_rows(plain):
    model, _, arrays = plain
    unit = np.asarray(model.weights.decoder, np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    near = arrays["near"].reshape(20, -1)
    np.testing.assert_array_equal(near, np.argsort(-cosine, axis=1)[:, : near.shape[1]])
    np.testing.assert_allclose(
        arrays["nearCosines"].reshape(near.shape), np.take_along_axis(cosine, near, 1), atol=1e-5
    )


def test_more_features_than_a_block_of_cosines(tmp_path):
    model = model_of(1500)
    _, arrays = decoded(sae.report(model, X, tmp_path / "r.html", rows=100))
    unit = np.asarray(model.weights.decoder)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(arrays["nearest"], cosine.max(1), atol=1e-5)


def test_some_rows_from_all_over_the_data(tmp_path):
    x = np.random.default_rng(1).normal(size=(20_000, 12)).astype(np.float32)
    about, arrays = decoded(sae.report(model_of(8), x, tmp_path / "r.html", rows=2000))
    assert 1900 <= about["looked"] <= 2000 and about["rows"] == 20_000
    rows = arrays["topRows"][arrays["topRows"] >= 0]
    assert rows.min() < 5000 and rows.max() > 15_000
    assert (arrays["histogram"].reshape(8, -1).sum(1) == about["looked"]).all()
    for row, value in zip(rows, arrays["topValues"], strict=False):
        assert value in np.asarray(model_of(8).encode(x[int(row)])).astype(np.float32) or value > 0


def test_metrics_and_curves_of_a_training(tmp_path):
    model = sae.train(X, features=16, l0=4, steps=40)
    about, _ = decoded(sae.report(model, X, tmp_path / "r.html"))
    wanted = sae.evaluate(model, sae.held_out(model, X)).numbers()
    assert dict(about["metrics"]) == pytest.approx(wanted)
    assert about["judged"] == "rows kept aside in training"
    np.testing.assert_allclose(about["history"]["l0"], model.training.history["l0"])
    assert about["recipe"] == "short_run" and about["trained"]["steps"] == 40
    bare = sae.Autoencoder(model.weights)
    about, _ = decoded(sae.report(bare, X, tmp_path / "r.html"))
    assert about["history"] is None and about["judged"] == "all rows"


def test_images_only_where_told(tmp_path):
    _, arrays = decoded(sae.report(model_of(8), X, tmp_path / "r.html"))
    assert "images" not in arrays and "atoms" not in arrays
    _, arrays = decoded(sae.report(model_of(8), X, tmp_path / "r.html", image_shape=(3, 4)))
    kept = arrays["kept"].astype(int)
    images = arrays["images"].reshape(len(kept), 12)
    top = np.quantile(np.abs(X[kept]), 0.995)
    wanted = 127.5 + 127.5 * (X[kept] / top).clip(-1, 1)  # 0 is in the middle
    assert np.abs(images - wanted).max() <= 0.51
    atoms = arrays["atoms"].reshape(8, 12)
    assert (atoms.argmax(1) == np.asarray(model_of(8).weights.decoder).argmax(1)).all()
    _, arrays = decoded(sae.report(model_of(8), np.abs(X), tmp_path / "r.html", image_shape=(2, 6)))
    assert arrays["images"].min() < 10  # without negative values 0 is black
    for wrong in ((3, 5), (12,), (2, 3, 2), (0, 4)):
        with pytest.raises(ValueError, match="`image_shape` should be height and width"):
            sae.report(model_of(8), X, tmp_path / "r.html", image_shape=wrong)


NASTY = "</script><script>boom()</script>"


def test_labels_belong_to_their_rows_and_are_only_text(tmp_path):
    labels = [f"row {i} {NASTY} & é" for i in range(700)]
    path = sae.report(model_of(8), X, tmp_path / "r.html", labels=labels, title=f"<b>{NASTY}")
    about, arrays = decoded(path)
    assert about["labels"] == [labels[int(row)] for row in arrays["kept"]]
    page = path.read_text(encoding="utf-8")
    assert NASTY not in page and "<b>" not in page
    assert html.unescape(re.search(r"<title>(.*)</title>", page)[1]) == f"<b>{NASTY}"
    with pytest.raises(ValueError, match="one label for each of the 700 rows, but there are 3"):
        sae.report(model_of(8), X, tmp_path / "r.html", labels=["a"] * 3)


def test_a_transcoder_and_what_cannot_be_reported_on(tmp_path):
    w = model_of(8).weights
    wide = w._replace(decoder=RNG.normal(size=(8, 5)), decoder_bias=np.zeros(5))
    transcoder = sae.Autoencoder(wide)
    about, _ = decoded(sae.report(transcoder, X, tmp_path / "r.html", targets=X[:, :5]))
    assert about["metrics"]
    with pytest.raises(ValueError, match="pass `targets`"):
        sae.report(transcoder, X, tmp_path / "r.html")
    with pytest.raises(ValueError, match="12 columns"):
        sae.report(model_of(8), X[:, :5], tmp_path / "r.html")
    with pytest.raises(OSError, match="cannot write"):
        sae.report(model_of(8), X, tmp_path)
    x = X.copy()
    x[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"x holds NaN or infinity in row 3 \(counted from 0\)"):
        sae.report(model_of(8), x, tmp_path / "r.html")
    np.save(tmp_path / "rows.npy", x)
    for look in (sae.report, sae.evaluate):
        more = [tmp_path / "r.html"] if look is sae.report else []
        with pytest.raises(ValueError, match=r"rows.npy holds NaN or infinity in row 3 \("):
            look(model_of(8), tmp_path / "rows.npy", *more)
    with pytest.raises(ValueError, match=r"`targets` holds NaN or infinity in row 3 \("):
        sae.evaluate(model_of(8), X, targets=x)


def test_the_command(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "labels.txt").write_text("\n".join(f"w{i}" for i in range(700)))
    model = sae.train(tmp_path / "x.npy", features=16, l0=4, steps=20)
    sae.save(model, tmp_path / "run" / "sae.safetensors")
    columns = {"step": [1, 2], "l0": [3.5, 4.5]}
    (tmp_path / "run" / "history.csv").write_text("step,l0\n1,3.5\n2,4.5\n")
    run = ["sae", "report", str(tmp_path / "run"), str(tmp_path / "x.npy")]
    out = ["--output", str(tmp_path / "r.html")]
    assert main([*run, *out, "--labels", str(tmp_path / "labels.txt")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    about, arrays = decoded(tmp_path / "r.html")
    assert about["history"] == columns
    assert about["labels"][0] == f"w{int(arrays['kept'][0])}"
    assert main([*run, *out, "--rows-are-images", "3x4"]) == 0
    assert decoded(tmp_path / "r.html")[0]["image"] == [3, 4, 1]
    for extra, words in (
        (["--rows-are-images", "12"], "--rows-are-images should be a height and a width"),
        (["--rows-are-images", "5x5"], "--rows-are-images should be height and width"),
        (["--labels", str(tmp_path / "none.txt")], "there is no file"),
        (["--labels", str(tmp_path / "x.npy")], "no text in UTF-8"),
        (["--output", str(tmp_path)], "it is a folder"),
        (["--targets", str(tmp_path / "few.npy")], "error: --targets should have shape (700, 12)"),
    ):
        np.save(tmp_path / "few.npy", X[:4])
        assert main([*run, *out, *extra]) == 2
        assert words in capsys.readouterr().err


# --- in a browser --------------------------------------------------------------------------------

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

WATCH = """<script>
window.faults = [];
window.addEventListener("error", (e) => faults.push(String(e.message)));
window.addEventListener("securitypolicyviolation", (e) => faults.push(e.blockedURI));
console.error = console.warn = (...words) => faults.push(words.join(" "));
</script>"""

DRIVE = """<script>
(() => {
const out = {}, $ = (s) => document.querySelector(s);
const all = (s) => [...document.querySelectorAll(s)];
const column = (k) => all("#table tbody tr[data-feature]").map((r) => r.children[k].textContent);
const set = (id, value) => {
  $(id).value = value; $(id).dispatchEvent(new Event("input", {bubbles: true}));
};
const inked = (s) => { const c = $(s); const d = c.getContext("2d").getImageData(0, 0, c.width,
  c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; };
out.drawn = Number(document.documentElement.dataset.drawn);
out.title = $("h1").textContent;
out.figures = all("#figures tbody tr").length;
out.curves = all("#training canvas").length;
out.scatter = inked("#scattercanvas"); out.histogram = inked("#histogram");
out.rows = all("#table tbody tr[data-feature]").length;
out.first = column(0)[0]; out.detail = $("#detail h2").textContent;
const heads = all("#table th button");
heads[2].click(); out.thresholdDown = column(2); out.sort = all("#table th")[2].ariaSort;
heads[2].click(); out.thresholdUp = column(2);
heads[0].click(); out.numbers = column(0);
set("#which", "dead"); out.dead = column(0); out.count = $("#count").textContent;
set("#which", "all"); set("#number", "7"); out.seven = column(0);
set("#number", ""); set("#least", "20"); out.often = column(0);
set("#least", "");
$("#table tbody tr[data-feature='4']").click(); out.chosen = $("#detail h2").textContent;
out.top = all("#toprows tbody tr").map((r) => r.children[0].textContent);
out.words = all("#toprows tbody tr").map((r) => r.children[2].textContent);
out.tiles = all("#toprows canvas").length;
const other = all("#near button")[0]; out.near = other.textContent; other.click();
out.jumped = $("#detail h2").textContent;
$("#scroller").dispatchEvent(new KeyboardEvent("keydown", {key: "Home", bubbles: true}));
out.home = $("#detail h2").textContent;
out.faults = window.faults;
const place = document.createElement("pre"); place.id = "out";
place.textContent = JSON.stringify(out); document.body.append(place);
})();
</script>"""


def looked_at(path, tmp_path):
    """Opens a page, uses it, and returns what was seen."""
    page = path.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1)
    before, _, after = page.rpartition("</body>")
    driven = tmp_path / "driven.html"
    driven.write_text(before + DRIVE + "</body>" + after, encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1300,1400",
        "--virtual-time-budget=20000", "--dump-dom", driven.as_uri(),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@in_browser
def test_it_renders_sorts_and_filters_without_errors(tmp_path):
    labels = [f"row {i} {NASTY}" for i in range(700)]
    history = {"step": [1, 2, 3], "l0": [9.0, np.nan, 5.0], "threshold_50": [1.0, 1.1, 1.2]}
    path = sae.report(
        model_of(20), X, tmp_path / "r.html", labels=labels, history=history, title=f"A {NASTY}"
    )
    _, arrays = decoded(path)
    seen = looked_at(path, tmp_path)
    assert seen["faults"] == []
    assert seen["title"] == f"A {NASTY}"
    assert seen["figures"] == 13 and seen["curves"] == 2
    assert min(seen["scatter"], seen["histogram"]) > 500
    assert seen["rows"] == 20
    often = np.argsort(-arrays["density"], kind="stable")
    assert seen["first"] == str(often[0]) and seen["detail"] == f"Feature {often[0]}"
    number = [float(text.replace(",", "").replace("e+", "e")) for text in seen["thresholdDown"]]
    assert number == sorted(number, reverse=True) and seen["sort"] == "descending"
    assert seen["thresholdUp"] == seen["thresholdDown"][::-1]
    assert seen["numbers"] == [str(i) for i in range(20)]
    assert seen["dead"] == [str(i) for i in np.flatnonzero(arrays["density"] == 0)]
    assert seen["count"] == f"{len(seen['dead'])} of 20"
    assert seen["seven"] == ["7"]
    assert seen["often"] == [str(i) for i in np.flatnonzero(arrays["density"] >= 0.2)]
    assert 0 < len(seen["often"]) < 20
    assert seen["chosen"] == "Feature 4"
    top = arrays["topRows"].reshape(20, -1)[4]
    assert [int(t.replace(",", "")) for t in seen["top"]] == top[top >= 0].tolist()
    assert seen["words"][0] == labels[int(top[0])]
    nearest = arrays["near"].reshape(20, -1)[4, 0]
    assert seen["near"].startswith(f"feature {nearest}")
    assert seen["jumped"] == f"Feature {nearest}" and seen["home"] == "Feature 0"


@in_browser
def test_rows_as_images_and_as_numbers(tmp_path):
    path = sae.report(model_of(20), X, tmp_path / "r.html", image_shape=(2, 2, 3))
    seen = looked_at(path, tmp_path)
    assert seen["faults"] == [] and seen["tiles"] > 3
    seen = looked_at(sae.report(model_of(20), X, tmp_path / "r.html"), tmp_path)
    assert seen["faults"] == [] and seen["tiles"] == 0 and ":" in seen["words"][0]


@pytest.mark.slow
@in_browser
def test_ten_thousand_features(tmp_path):
    """Small enough, soon there, and only what is in view is in the page."""
    x = np.random.default_rng(0).normal(size=(6000, 144)).astype(np.float32)
    path = sae.report(model_of(10_000, 144), x, tmp_path / "r.html", image_shape=(12, 12))
    assert path.stat().st_size < 20e6
    seen = looked_at(path, tmp_path)
    assert seen["faults"] == []
    assert seen["rows"] < 100
    assert seen["drawn"] < 3000  # milliseconds
