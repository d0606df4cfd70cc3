#!/usr/bin/env python
"""Writes the tables of figures into the pages, from what was written to docs/figures.

In a page a table stands between `<!-- table: NAME -->` and `<!-- end of the table -->`, with the
command that measured it, its version of JAX and its date behind it. Written again by `make tables`;
a test compares. A table whose figures are not in docs/figures yet is left as it stands.
"""

import argparse
import dataclasses
import functools
import itertools
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from figures import (
    FIGURES,
    ROOT,
    Figures,
    power,
    scientific,
    short,
    signed,
    significant,
    sources,
    table,
    versions,
)

from jaxtrelu._files import write_file

_MARKED = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)<!-- end of the table -->\n", re.DOTALL)


# memory of models


def models(*runs: Figures) -> str:
    """Temporary memory of the gradient of whole models, with each version of JAX."""
    rows = []
    for (_, shape, mode, peer), _ in runs[0].rows.items():
        if mode == "temporary memory" and peer == "jaxtrelu":
            cells = [shape.replace(" x ", " × ").replace("jax.checkpoint", "`jax.checkpoint`")]
            for run in runs:
                before, after = (run.value("memory", shape, mode, p) for p in ("nnx.relu", peer))
                cells += [f"{before:.0f} → {after:.0f} MB", short(after / before)]
            rows.append(cells)
    heads = [(f"`nnx.relu` → jaxtrelu, JAX {run.environment['jax']}", "ratio") for run in runs]
    return table(("", *itertools.chain(*heads)), rows)


# the activation alone, and in networks


def costs(figures: Figures) -> str:
    """What is kept, temporary memory, and times."""

    def kept(peer):
        modes = [f"jax.vjp, {dtype}" for dtype in ("float32", "bfloat16", "float64")]
        return [figures.value("residual", "", mode, peer) for mode in modes]

    def temporary(what, name):
        mode = f"{name}, temporary memory"
        before, after = (figures.value("network", "", mode, p) for p in ("jax.nn.relu", "jaxtrelu"))
        return what, f"{before:.0f} MB", f"{after:.0f} MB", short(after / before)

    def times(what, suite, cases, baseline, ours="jaxtrelu"):
        keys = [(suite, shape, mode) for shape, mode in cases]
        before = [figures.ms(*key, baseline) for key in keys]
        after = [figures.ms(*key, ours) for key in keys]
        ratios = [
            figures.ratio(*key, ours) / figures.ratio(*key, baseline) for key in keys
        ]  # fmt: skip
        cells = [" / ".join(map(significant, found)) + " ms" for found in (before, after)]
        return what, *cells, " / ".join(map(short, ratios))

    large, loaded = ("2^24", "2^25"), figures.value("import", "", "", "jaxtrelu")
    before, after = kept("jax.nn.relu(x-θ)"), kept("jaxtrelu")
    ways = ("plain", "residual", "scan")
    rows = [
        (
            "kept by `jax.vjp`, bytes per element: float32 / bfloat16 / float64",
            " / ".join(f"{one:g}" for one in before),
            " / ".join(f"1/{1 / one:g}" for one in after),
            " / ".join(short(b / a, 3) for a, b in zip(before, after, strict=True)),
        ),
        temporary(
            "temporary memory of the gradient of 12 layers of f(x @ W), 2048 × 1024", "plain"
        ),
        temporary("the same with a residual connection, h + c·f(h @ W)", "residual"),
        temporary("the same inside `lax.scan`", "scan"),
        times(
            "time of that gradient step: plain / residual / in `lax.scan`",
            "network", [("", f"{way}, gradient step") for way in ways], "jax.nn.relu",
        ),
        times(
            "forward of 2^24 / 2^25 elements",
            "forward", [(shape, "shift, forward") for shape in large], "jnp.where",
        ),
        times(
            "forward in place, 2^24 / 2^25 elements",
            "forward", [(shape, "shift, in place") for shape in large], "jnp.where",
        ),
        times(
            "the same beside a memcpy on all cores",
            "forward", [(shape, "shift, in place") for shape in large], "memcpy",
        ),
        times(
            "value and gradient of the bare function, 2^24 / 2^25 elements",
            "forward", [(shape, "shift, forward+backward") for shape in large], "jnp.where",
        ),
        ("`import jaxtrelu` after `import jax`", "", f"{loaded:.0f} ms", ""),
    ]  # fmt: skip
    return table(("", "`jax.nn.relu`, `jnp.where`, memcpy", "jaxtrelu", "ratio"), rows)


# sparse products


def sparsity(figures: Figures) -> str:
    """Memory and time against the share of open entries."""
    shares = {
        shape.partition(" of")[0]: shape for suite, shape, _, _ in figures.rows if suite == "memory"
    }
    times = {share: ("time", f"{share} of 16384 open, 1024 x 768", "gradient") for share in shares}
    # Both keep the same at any share, and are measured at its ends only.
    dense, words = (
        {figures.value(*key) for key in figures.rows if key[0] == "memory" and key[3] == peer}
        for peer in ("jax.nn.relu", "thresholded_relu")
    )
    (dense,), (words,) = dense, words
    same = ["the same"] * (len(shares) - 1)
    rows = [
        ("`jax.nn.relu`, bytes per hidden element", f"{dense:.2f}", *same),
        ("`thresholded_relu`", f"{words:.2f}", *same),
        (
            "`compact_mlp`",
            *(short(figures.value("memory", s, "", "compact_mlp")) for s in shares.values()),
        ),
        (
            "`sparse_mlp`, time of a gradient step, dense 1",
            *(short(figures.ratio(*times[share], "sparse_mlp")) for share in shares),
        ),
    ]
    return table(("open", *(share.replace("%", " %") for share in shares)), rows)


def uses(
    narrow: Figures,
    wide: Figures,
    shares: Figures,
    one: Figures,
    newest: Figures,
    deep: Figures,
    shallow: Figures,
) -> str:
    """For users: what each of the three operations gives, and when not to use it."""

    def faster(run: Figures, *key: str) -> float:
        return round(1 / run.ratio(*key, "jaxtrelu"), 1)

    def gates(size: int, share: int) -> str:
        key = (f"{size} x 2048 x 8192, {share}%", "forward, cold")
        return " to ".join(str(n) for n in sorted({faster(r, "", *key) for r in (one, newest)}))

    def bytes_of(peer: str) -> str:
        return significant(deep.value("memory", "", "growth", peer), 2)

    lost = {
        f"{row['ratio']:.1f}"
        for (suite, *_, peer), row in shares.rows.items()
        if suite == "time" and peer == "sparse_mlp" and row["ratio"] > 1
    }
    gradients = [f"{faster(run, 'product', '', 'gradient'):.1f} times" for run in (narrow, wide)]
    slower = [short(run.ratio("time", "", "gradient step", "compact")) for run in (deep, shallow)]
    rows = [
        (
            "`sparse_mlp`",
            "act(x @ w_in.T) @ w_out; one dense product of five in a gradient step, the rest at "
            "open entries",
            f"time: {gradients[0]} dense with 64 of 16,384 open, {gradients[1]} with 64 of 65,536",
            f"more than about one feature in 32 open, where it takes {' to '.join(sorted(lost))} "
            "times dense at d = 768; narrow rows (d near 100 needs one in 48); GPU and TPU",
        ),
        (
            "`gated_mlp`",
            "(act(x @ w_gate.T) * (x @ w_up.T)) @ w_out, reading open units' weights only",
            "time in decoding, weights from memory, times the best dense form: one row "
            f"{gates(1, 90)} at 90 % zeros and {gates(1, 99)} at 99 %, four rows {gates(4, 90)} "
            f"and {gates(4, 99)}",
            "batches of 64 rows and more below 99 % zeros, and 4 to 8 rows below 95 %",
        ),
        (
            "`compact_mlp`",
            "the first of them, with dense products, keeping the latent as words and values",
            f"memory: {short(deep.value('memory', '', 'growth', 'compact'))} bytes per hidden "
            f"element, dense {bytes_of('dense')}, packed words {bytes_of('words')}; not time: a "
            f"gradient step takes {slower[0]} of dense with 48 layers, {slower[1]} with 12",
            "nothing of the weights is trained; then `thresholded_relu` keeps less; small "
            "layers, where making lists takes as long as the products",
        ),
    ]
    return table(("", "computes", "what it gives", "when not to use it"), rows)


def product(*runs: Figures) -> str:
    """Forward, gradient and step of `sparse_mlp`, in milliseconds."""
    names = {
        "gradient": "gradient", "forward": "forward", "Adam step": "step with Adam"
    }  # fmt: skip
    rows = []
    for mode, name in names.items():
        for run in runs:
            key = ("product", "", mode)
            cells = [significant(run.ms(*key, p)) for p in ("dense JAX", "PyTorch", "jaxtrelu")]
            ratio = run.ratio(*key, "jaxtrelu")
            faster = (1 / ratio, run.ratio(*key, "PyTorch") / ratio)
            rows.append((f"{name}, {pages_of(run)}", *cells, *(f"{one:.1f}" for one in faster)))
    for run in runs:
        encode = significant(run.ms("product", "", "limit", "dense encode"))
        rows.append((f"the dense encode alone, {pages_of(run)}", encode, "", "", "", ""))
    (shape,) = {shape for suite, shape, _, _ in runs[0].rows if suite == "product"}
    heads = ("dense JAX", "PyTorch", "jaxtrelu", "times dense JAX", "times PyTorch")
    return table((shape, *heads), rows)


def pages_of(run: Figures) -> str:
    """Whether it had huge pages."""
    return f"huge pages {run.environment['huge pages']}"


def find(*runs: Figures) -> str:
    """The open entries of a mask, in milliseconds."""
    peers = ("vmapped jnp.nonzero", "lax.top_k", "jaxtrelu.bits")
    rows = []
    for run in runs:
        times = [run.ms("find", "", "find", peer) for peer in peers]
        faster = ", ".join(f"{one / times[-1]:.2g}" for one in times[:-1])
        rows.append((pages_of(run), *map(significant, times), faster))
    (shape,) = {shape for suite, shape, _, _ in runs[0].rows if suite == "find"}
    head = f"find the open entries of {shape.replace('x', ' × ')}"
    return table((head, "`jnp.nonzero`", "`lax.top_k`", "jaxtrelu", "times as fast"), rows)


def gated(*runs: Figures) -> str:
    """Times dense of `gated_mlp`, by rows, whose weights are cold or warm, and sparsity."""
    shapes = [shape.rpartition(", ")[::2] for _, shape, _, _ in runs[0].rows]
    sized = {int(size.split(" x ")[0]): size for size, _ in shapes}
    shares = sorted({share for _, share in shapes})
    rows = []
    for size, state, run in itertools.product(sized, ("cold", "warm"), runs):

        def faster(share, peer, size=size, state=state, run=run):
            key = ("", f"{sized[size]}, {share}", f"forward, {state}", peer)
            return f"{1 / run.ratio(*key):.1f}"

        cells = [faster(share, "jaxtrelu") for share in shares]
        cells.append(faster(shares[-1], "gate only"))
        torch = {peer for *_, peer in run.rows if peer.startswith("PyTorch")}
        cells.append(max((faster(shares[-1], peer) for peer in torch), key=float, default=""))
        rows.append((f"{size}, {state}", run.environment["jax"], *cells))
    heads = (share.replace("%", " %") for share in shares)
    return table(("rows", "JAX", *heads, "gate alone", "PyTorch"), rows)


def screen(*runs: Figures) -> str:
    """Forward and gradient, with a screen and without, in units of the dense encode alone."""
    peers = ("dense JAX", "PyTorch", "jaxtrelu", "int8", "int8, prepared")
    rows = []
    for run, mode in itertools.product(runs, ("forward", "gradient")):
        found = {peer: row for (_, _, of, peer), row in run.rows.items() if of == mode}
        shape = found["dense JAX"]["shape"].partition(",")[0]
        cells = (short(found[peer]["ratio"]) if peer in found else "" for peer in peers)
        rows.append((f"{mode}, {shape}", run.environment["jax"], *cells))
    names = ("dense JAX", "PyTorch", "`sparse_mlp`", '`screen="int8"`', "prepared")
    return table(("", "JAX", *names), rows)


def rounded(*runs: Figures) -> str:
    """The rounded product alone, in milliseconds, the faster of both layouts."""
    kinds = ("float32", "int8", "bfloat16")
    layouts = ("(m, d)", "(d, m)")
    rows = []
    for run in runs:
        (shape,) = {shape for suite, shape, _, _ in run.rows if suite == "product"}
        times = (
            min(run.ms("product", "", "", f"{kind} {layout}") for layout in layouts)
            for kind in kinds
        )
        rows.append((run.environment["jax"], *map(significant, times)))
    return table((f"{shape}, ms, JAX", *kinds), rows)


def screen_parts(*runs: Figures) -> str:
    """The parts of a gradient step with a screen: milliseconds, and in units of the encode."""
    (shape,) = {shape for suite, shape, _, _ in runs[0].rows if suite == "parts"}
    rows = []
    for suite, _, _, peer in runs[0].rows:
        if suite == "parts":
            cells = (
                f"{significant(run.ms('parts', '', '', peer))} "
                f"({short(run.ratio('parts', '', '', peer))})"
                for run in runs
            )
            rows.append((peer, *cells))
    return table((shape, *(f"ms, JAX {run.environment['jax']}" for run in runs)), rows)


def left_over(figures: Figures) -> str:
    """Entries of a row that a screen leaves to compute, open ones among them."""
    rows = []
    for shape in dict.fromkeys(s for suite, s, _, _ in figures.rows if suite == "candidates"):
        kinds = ("open", "int8", "bfloat16")
        values = (figures.value("candidates", shape, "", kind) for kind in kinds)
        rows.append((shape, *(f"{value:.0f}" for value in values)))
    return table(("", "open", "int8", "bfloat16"), rows)


def compact(deep: Figures, shallow: Figures, frozen: Figures) -> str:
    """What blocks of `compact_mlp` keep, and the time of a step."""
    peers = ("dense", "words", "compact")

    def grown(what: str, run: Figures):
        return what, *(short(run.value("memory", "", "growth", peer)) for peer in peers)

    def step(what: str, run: Figures):
        return what, *(short(run.ratio("time", "", "gradient step", peer)) for peer in peers)

    rows = [
        grown("growth per layer from 48 to 96 layers, bytes per hidden element", deep),
        step("gradient step of 48 layers", deep),
        step("of 12 layers", shallow),
        grown("the same for the gradient of the input alone: growth", frozen),
        step("step", frozen),
    ]
    return table(("", "dense", "packed words", "compact"), rows)


# the README


def overview(
    whole: Figures, alone: Figures, deep: Figures, sparse: Figures, small: Figures, one: Figures
) -> str:
    """What it gives, in one table."""

    def temporary(what: str, shape: str):
        before, after = (
            whole.value("memory", shape, "temporary memory", peer)
            for peer in ("nnx.relu", "jaxtrelu")
        )
        return what, f"{before:.0f} MB", f"{after:.0f} MB", short(after / before)

    kept = [
        alone.value("residual", "", "jax.vjp, float32", p) for p in ("jax.nn.relu(x-θ)", "jaxtrelu")
    ]
    grown = [deep.value("memory", "", "growth", peer) for peer in ("dense", "compact")]
    key = ("product", "", "gradient")
    faster, without = (f"{1 / run.ratio(*key, 'jaxtrelu'):.1f} times" for run in (sparse, small))
    gates = [
        f"{1 / one.ratio('', f'1 x 2048 x 8192, {share}%', 'forward, cold', 'jaxtrelu'):.1f}"
        for share in (90, 99)
    ]
    rows = [
        temporary(
            "gradient of an MLP, 8 layers, 2048 × 1024: temporary memory",
            "MLP, 8 layers, 2048 x 1024",
        ),
        temporary("of a small ConvNet with strides", "ConvNet with strides, 64 x 32 x 32 x 3"),
        (
            "kept by `jax.vjp` of the activation alone, per element of float32",
            f"{kept[0]:g} bytes", f"1/{1 / kept[1]:.0f} byte", short(kept[1] / kept[0], 3),
        ),
        (
            "latent of two layers kept between the passes, a tenth open (`compact_mlp`), "
            "per element",
            f"{grown[0]:.0f} bytes", f"{short(grown[1])} bytes", short(grown[1] / grown[0]),
        ),
        (
            "gradient step with 64 of 16,384 features open (`sparse_mlp`)",
            "", "", f"{faster} as fast",
        ),
        (
            "one row through a gated block, 90 / 99 % zeros (`gated_mlp`)",
            "", "", f"{' / '.join(gates)} times as fast",
        ),
    ]  # fmt: skip
    found = versions(whole, alone, deep, sparse, small, one)
    return table(("", "without", "with jaxtrelu", ""), rows) + (
        f"\nTwo CPU cores, float32, {found}. Times as fast: medians of ratios, each of two runs\n"
        "one after the other. The last two rows with huge pages; without them `sparse_mlp` is "
        f"{without} as fast.\n"
    )


# devices


def scaling(figures: Figures) -> str:
    """What the compiled programs say of one device."""
    names = {
        "strong, examples": "one size, examples shared",
        "strong, features": "one size, features shared",
        "weak, examples": "examples grow with the devices",
        "weak, features": "features grow with the devices",
    }
    rows = []
    for series, name in names.items():
        devices, flops, sums = ([] for _ in range(3))
        for suite, count, mode, _ in figures.rows:
            if suite == series and mode == "operations of the model":
                devices.append(count)
                flops.append(f"{figures.value(suite, count, mode, ''):,.0f}")
                sums.append(short(figures.value(suite, count, "collectives", "")))
        rows.append((name, " / ".join(devices), " / ".join(flops), " / ".join(sums)))
    return table(("", "devices", "Mflop a device", "MB in collectives"), rows)


def predicted(figures: Figures) -> str:
    """A step of a million features, as the model has it."""
    counts = dict.fromkeys(shape for suite, shape, _, _ in figures.rows if suite == "predicted")
    peers = dict.fromkeys(peer for suite, _, _, peer in figures.rows if suite == "predicted")

    def cell(peer, count):
        found = [figures.rows.get(("predicted", count, mode, peer)) for mode in ("step", "memory")]
        return " / ".join(significant(row["value"]) for row in found if row)

    rows = [(peer, *(cell(peer, count) for count in counts)) for peer in peers]
    return table(("ms a step / GB a device", *counts), rows)


# autoencoders


def planted(figures: Figures) -> str:
    """Planted features: means and standard deviations over the seeds."""
    rows = []
    for peer in dict.fromkeys(peer for _, _, _, peer in figures.rows):

        def column(name, peer=peer):
            row = figures.row("planted", "", name, peer)
            return row["value"], row["spread"]

        cells = [
            "{} ± {}".format(*(short(x, 3) for x in column(n))) for n in ("f1", "mean_correlation")
        ]
        l0 = "{:.2f} ± {}".format(column("l0")[0], short(column("l0")[1]))
        rows.append((peer, *cells, l0, f"{100 * column('lost_variance')[0]:.1f} %"))
    return table(("five seeds", "F1", "mean correlation", "L0", "lost variance"), rows)


def scores(figures: Figures, *, brief: bool = False) -> str:
    """A synthetic world: means and standard errors over worlds, and of the paired differences."""
    worlds = list(dict.fromkeys(shape for _, shape, _, _ in figures.rows))
    peers = list(dict.fromkeys(peer for *_, peer in figures.rows))
    names = {"f1_all": "F1, dead as 0", "f1": "F1 of the living", "mcc": "MCC"}
    if not brief:
        names |= {"precision": "precision", "recall": "recall"}
    names |= {"dead": "dead"} | ({} if brief else {"r2": "R²"}) | {"l0": "L0"}

    def cells(found: Callable[[str, str], float], sign: str = ""):
        for name in names:
            values = [found(world, name) for world in worlds]
            mean = statistics.fmean(values)
            error = statistics.stdev(values) / len(values) ** 0.5
            if name == "dead":
                yield signed(f"{100 * mean:{sign}.1f}") + ("" if sign else " %")
            elif name == "l0":
                yield signed(f"{mean:{sign}.2f}")
            else:
                spread = f" ± {short(error, 3)}" if name in ("f1_all", "f1", "mcc") else ""
                yield signed(f"{mean:{sign}.3f}") + spread

    def of(peer: str):
        return lambda world, name: figures.value("world", world, name, peer)

    def less(peer: str):
        return lambda world, name: of(peer)(world, name) - of(peers[0])(world, name)

    rows = [(peer, *cells(of(peer))) for peer in peers]
    rows += [(f"{peer} − {peers[0].split()[0]}", *cells(less(peer), "+")) for peer in peers[1:]]
    return table((f"{len(worlds)} worlds", *names.values()), rows)


# deep nets


def nets(figures: Figures) -> tuple[list[str], dict[str, list[str]]]:
    """The shares of zeros, and the nets by V′, each in that order."""
    names = dict.fromkeys(name for _, name, _, _ in figures.rows if name != "relu")
    slopes: dict[str, list[str]] = {}
    for name in names:
        slope = figures.value("depth", name, "slope", "")
        slopes.setdefault("no ceiling" if slope is None else f"V′ = {short(slope, 1)}", []).append(
            name
        )
    shares = {figures.value("depth", name, "sparsity", "") for name in names}
    return [f"s = {share:g}".replace("0.", ".") for share in sorted(shares)], slopes


def start(figures: Figures) -> str:
    """Variance and squared gradient that a layer makes, measured over predicted."""

    def pair(name):
        columns = ("variance_ratio", "gradient_ratio")
        return " / ".join(short(figures.value("depth", name, c, ""), 3) for c in columns)

    shares, slopes = nets(figures)
    rows = [(slope, *map(pair, names)) for slope, names in slopes.items()]
    return table((f"ReLU: {pair('relu')}", *shares), rows)


def drift(*runs: Figures, columns: Sequence[str] = ("drift_low", "drift_high")) -> str:
    """Of the last layer over the first: quartiles over nets."""
    rows = []
    for number, run in enumerate(runs):
        shares, slopes = nets(run)
        for slope, names in slopes.items():
            cells = (
                " to ".join(dict.fromkeys(power(run.value("depth", name, c, "")) for c in columns))
                for name in names
            )
            rows.append((f"{slope}, {size(run)}" if number or len(runs) > 1 else slope, *cells))
    return table(("", *shares), rows)


def size(run: Figures) -> str:
    """Layers × units, from the command."""
    words = run.environment["command"].split()
    given = dict(itertools.pairwise(words))
    return f"{given.get('--depth', 30)} × {given.get('--width', 100)}"


def trained(figures: Figures) -> str:
    """Test accuracy after training: means and standard errors over seeds."""

    def cell(name: str) -> str:
        mean, error = (
            100 * figures.value("depth", name, column, "")
            for column in ("test_accuracy", "test_accuracy_se")
        )
        return f"{mean:.1f} ± {short(error, 1) if error < 10 else f'{error:.0f}'}"

    shares, slopes = nets(figures)
    rows = [(slope, *map(cell, names)) for slope, names in slopes.items()]
    return table((f"ReLU: {cell('relu')}", *shares), rows)


def descent(figures: Figures) -> str:
    """Test accuracy after stochastic gradient descent, by epochs, with the rates."""
    names = dict.fromkeys(name for _, name, _, _ in figures.rows)
    epochs = sorted({mode for _, _, mode, _ in figures.rows}, key=lambda mode: int(mode.split()[0]))

    def cell(name: str, mode: str) -> str:
        found = [
            (
                scientific(float(rate)),
                "no number" if row["value"] is None else f"{row['value']:.1f}",
            )
            for (_, of, at, rate), row in figures.rows.items()
            if (of, at) == (name, mode)
        ]
        return ", ".join(f"{accuracy} ({rate})" for rate, accuracy in found)

    rows = [(name, *(cell(name, mode) for mode in epochs)) for name in names]
    return table(("", *epochs), rows)


# bad days


def faults(figures: Figures) -> str:
    """How often each fault was tried, and what was lost; each row has a source of its own."""
    rows = [
        (what, str(row["tried"]), str(row["tried"] - row["lost"]), str(row["lost"]), row["note"])
        for (_, what, _, _), row in figures.rows.items()
    ]
    made = dict.fromkeys(
        f"JAX {row['jax']}, Python {row['python']}, {row['date']}" for row in figures.rows.values()
    )
    calls = dict.fromkeys(row["command"].partition(" --only")[0] for row in figures.rows.values())
    text = table(("fault", "tried", "survived", "lost", ""), rows)
    commands = " and ".join(f"`{call}`" for call in calls)
    return f"{text}\n({commands}, {'; '.join(made)}.)\n"


# what is read from a layer


def read_out(figures: Figures) -> str:
    """Accuracy of a linear probe, by the share of zeros."""
    shares = dict.fromkeys(mode for _, _, mode, _ in figures.rows)
    names = dict.fromkeys(shape for _, shape, _, _ in figures.rows)

    def cells(name: str, what: str, digits: int):
        return (f"{figures.value('layer', name, share, what):.{digits}f}" for share in shares)

    kinds = ("hard", "shift")
    rows = [(f"{n}, `{kind}`", *cells(n, kind, 1)) for n, kind in itertools.product(names, kinds)]
    rows += [(f"units that no training row opens, {n}", *cells(n, "never open", 0)) for n in names]
    return table(("per cent", *(share.replace("%", " %") for share in shares)), rows)


# closed forms


def information() -> str:
    """How much of one normal entry is left; nothing is measured."""
    from statistics import NormalDist

    import jax.numpy as jnp

    from jaxtrelu import theory

    zeros = (50, 60, 70, 80, 90, 95, 98)
    thresholds = jnp.array([NormalDist().inv_cdf(share / 100) for share in zeros])
    hard, shift = (theory.information(thresholds, variant=v) for v in ("hard", "shift"))
    rows = [
        (
            f"{share} %",
            short(1 - float(hard.best_error[k])),
            " / ".join(short(1 - float(one.linear_error[k])) for one in (hard, shift)),
            f"{float(hard.gate_entropy[k]):.2f}".removeprefix("0"),
        )
        for k, share in enumerate(zeros)
    ]
    linear = "by a linear one, `hard` / `shift`"
    return table(("zeros", "of the variance, by any read-out", linear, "bits of the gate"), rows)


@dataclasses.dataclass(frozen=True)
class Made:
    """How a table is made, from the figures of these names; without any, from the library itself.

    Where a table is from stands behind it, or, with `quietly`, is left to the page.
    """

    lines: Callable[..., str]
    figures: tuple[str, ...] = ()
    quietly: bool = False

    def missing(self) -> list[str]:
        """Which figures have not been measured for docs/figures."""
        return [name for name in self.figures if not (FIGURES / f"{name}.json").is_file()]

    def text(self) -> str:
        """The table, and where it is from."""
        found = [Figures.read(name) for name in self.figures]
        if not found or self.quietly:
            return self.lines(*found)
        return f"{self.lines(*found)}\n({sources(*found)}.)\n"


TABLES = {
    "overview": Made(
        overview,
        (
            *("models", "activation", "compact_mlp"),
            *("sparse_mlp", "sparse_mlp_small_pages", "gated_mlp"),
        ),
        quietly=True,
    ),
    "models": Made(models, ("models", "models_newest")),
    "costs": Made(costs, ("activation",)),
    "sparsity": Made(sparsity, ("sparsity",)),
    "product": Made(product, ("sparse_mlp", "sparse_mlp_small_pages")),
    "product-wide": Made(product, ("sparse_mlp_wide",)),
    "find": Made(find, ("sparse_mlp", "sparse_mlp_small_pages")),
    "gated": Made(gated, ("gated_mlp", "gated_mlp_newest")),
    "screen": Made(screen, ("screen_newest", "screen_wide_newest", "screen", "screen_wide")),
    "rounded": Made(rounded, ("screening", "screening_newest")),
    "screen-parts": Made(screen_parts, ("screening", "screening_newest")),
    "candidates": Made(left_over, ("screening",)),
    "compact": Made(compact, ("compact_mlp", "compact_mlp_12", "compact_mlp_frozen")),
    "uses": Made(
        uses,
        (
            *("sparse_mlp", "sparse_mlp_wide", "sparsity"),
            *("gated_mlp", "gated_mlp_newest", "compact_mlp", "compact_mlp_12"),
        ),
    ),
    "scaling": Made(scaling, ("scaling",)),
    "predicted": Made(predicted, ("scaling",)),
    "planted": Made(planted, ("planted_features",)),
    "world": Made(scores, ("world",)),
    "world-in-short": Made(functools.partial(scores, brief=True), ("world",)),
    "world-half": Made(scores, ("world_half",)),
    "world-quarter": Made(scores, ("world_quarter",)),
    "world-full-by-name": Made(functools.partial(scores, brief=True), ("world_full_by_name",)),
    "world-by-name": Made(functools.partial(scores, brief=True), ("world_by_name",)),
    "world-quarter-in-short": Made(functools.partial(scores, brief=True), ("world_quarter",)),
    "start-deep": Made(start, ("depth_100",)),
    "start-wide": Made(start, ("depth_2000",)),
    "drift": Made(drift, ("depth_100", "depth_30")),
    "gradient-drift": Made(
        functools.partial(drift, columns=("gradient_drift_low", "gradient_drift_high")),
        ("depth_100", "depth_30"),
    ),
    "trained": Made(trained, ("depth_adam",)),
    "descent": Made(descent, ("depth_sgd",)),
    "faults": Made(faults, ("faults",), quietly=True),
    "read-out": Made(read_out, ("read_out",)),
    "information": Made(information),
}


def written(page: str) -> tuple[str, list[str]]:
    """A page with its tables as the figures have them, and the names of those without figures."""
    left = []

    def again(found: re.Match) -> str:
        made = TABLES[found[1]]
        if made.missing():
            left.append(found[1])
            return found[0]
        return f"<!-- table: {found[1]} -->\n\n{made.text()}\n<!-- end of the table -->\n"

    return _MARKED.sub(again, page), left


def pages() -> dict[Path, list[str]]:
    """Each page that has such tables, and their names."""
    found = {}
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        if names := [name for name, _ in _MARKED.findall(path.read_text(encoding="utf-8"))]:
            found[path] = names
    return found


def main() -> None:
    """Writes every page that has such tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for path, names in pages().items():
        text, left = written(path.read_text(encoding="utf-8"))
        write_file(path, text)
        for name in names:
            print(f"{path.relative_to(ROOT)}: {name}{' left: no figures' * (name in left)}")


if __name__ == "__main__":
    main()
