#!/usr/bin/env python
"""Writes the pictures of README and site, for light and for dark pages, into docs/pictures.

functions  the three variants, what their derivatives and integrals are
idea       element, word, gate, list
inside     the rooms of the library, and the way of one element through them
sparsity   memory and time against the share of open entries, from docs/figures/sparsity.json
candidates what a screen leaves to compute, against threshold and width
sweep      the sparse gradient's time against m and against L0, from docs/figures/sweep.json
scaling    what a model predicts of many accelerators, from docs/figures/scaling.json
"""

import argparse
import itertools
import json
import math
import re
from pathlib import Path

from drawings import DRAWINGS

from jaxtrelu._files import write_file

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "docs" / "pictures"
FIGURES = ROOT / "docs" / "figures"

#: Ink, and Okabe and Ito's colours, made lighter on a dark page; with the dashes that tell the
#: curves apart in grey print.
MODES = {
    "light": {
        "ink": "#1f2430", "grey": "#6b7280", "faint": "#d9dce2", "ground": "#ffffff",
        "panel": "#f3f5f9", "blue": "#0072B2", "red": "#D55E00", "green": "#009E73",
        "purple": "#AA4499",
    },
    "dark": {
        "ink": "#e6e8ee", "grey": "#9aa2b1", "faint": "#3a4150", "ground": "#1e2129",
        "panel": "#2a2f3b", "blue": "#56B4E9", "red": "#F28E4B", "green": "#3CC79B",
        "purple": "#DD8FCB",
    },
}  # fmt: skip
DASHES = {"shift": "-", "hard": (0, (6, 2)), "clamp": (0, (2, 1.6))}


def functions(mode):
    """What comes through the gate, and what differs between the variants."""
    import jax
    import jax.numpy as jnp
    from matplotlib.figure import Figure

    from jaxtrelu import Rectangle, jump_relu, thresholded_relu
    from jaxtrelu.plot._curves import draw_curve, pieces, thresholded

    colour = {"shift": mode["blue"], "hard": mode["red"], "clamp": mode["green"]}
    theta, limits = 1.0, (-1.0, 3.0)
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    grid = figure.subplots(2, 3, sharex=True)

    def line(axes, shape, quantity, variant, width=2.4):
        look = {"c": colour[variant], "lw": width, "ls": DASHES[variant]}
        draw_curve(axes, shape, quantity, limits, 200, look, circles=True)
        for circle in axes.lines:
            if circle.get_marker() == "o" and circle.get_markerfacecolor() == "white":
                circle.set_markerfacecolor(mode["ground"])

    titles = {"shift": "x − θ where open, else 0", "hard": "x where open, else 0",
              "clamp": "x where open, else θ"}  # fmt: skip
    shapes = {name: thresholded(name, theta, None) for name in titles}
    for axes, (variant, formula) in zip(grid[0], titles.items(), strict=True):
        axes.axvspan(theta, limits[1], color=mode["panel"], lw=0, zorder=0)
        line(axes, shapes[variant], 0, variant)
        axes.set_title(f"{variant}:  {formula}", color=colour[variant], fontweight="bold")
        axes.set_ylim(-0.3, 3.3)
        axes.text(1.08, 0.12 if variant == "clamp" else 3.0, "open: x > θ", color=mode["grey"],
                  fontsize=9, va="center")  # fmt: skip
    grid[0, 0].set_ylabel("f(x)")

    left, middle, right = grid[1]
    line(left, shapes["shift"], 1, "shift")
    for part in left.lines:
        part.set_color(mode["ink"])
        part.set_linestyle("-" if part.get_marker() == "None" else "none")
    for part in left.lines:
        if part.get_markerfacecolor() == mode["ground"]:
            part.set_markeredgecolor(mode["ink"])
    left.set_title("∂f/∂x: the gate, for all three", fontweight="bold")
    left.set_ylim(-0.65, 1.3)
    left.set_yticks([0, 1])
    left.annotate("0 at x = θ", (theta, 0), (1.3, -0.32), color=mode["grey"], fontsize=9,
                  arrowprops={"arrowstyle": "-", "color": mode["grey"], "shrinkB": 6})  # fmt: skip

    def by_threshold(function):
        slope = jax.vmap(jax.grad(lambda t, x: function(x, t)), (None, 0))
        return lambda x: slope(jnp.float32(theta), x)

    surrogate = Rectangle(0.8)
    estimate = by_threshold(lambda x, t: jump_relu(x, t, surrogate=surrogate))
    for variant in shapes:
        true = by_threshold(lambda x, t, v=variant: thresholded_relu(x, t, variant=v))
        parts, jumps = pieces(true, [theta], *limits, 200)
        for part in parts:
            middle.plot(part.x, part.y, c=colour[variant], lw=2.4, ls=DASHES[variant])
        for jump in jumps:
            circle = {"c": colour[variant], "marker": "o", "ms": 5.5, "mew": 1.5, "zorder": 4}
            middle.plot(jump.x, jump.limits[0], **circle, mfc=mode["ground"])
            middle.plot(jump.x, jump.value, **circle)
    window = [theta - 0.4, theta + 0.4]
    parts = pieces(estimate, window, *limits, 200)[0]
    middle.fill_between(parts[1].x, parts[1].y, color=colour["hard"], alpha=0.25, lw=0)
    middle.text(theta - 0.48, -1.05, "hard with\na surrogate", color=colour["hard"], fontsize=9,
                va="center", ha="right")  # fmt: skip
    middle.text(-0.95, 1.14, "clamp", color=colour["clamp"], fontsize=9, va="bottom")
    middle.text(2.95, -0.94, "shift", color=colour["shift"], fontsize=9, va="bottom", ha="right")
    middle.text(2.95, 0.06, "hard", color=colour["hard"], fontsize=9, va="bottom", ha="right")
    middle.set_ylim(-1.5, 1.5)
    middle.set_yticks([-1, 0, 1])
    middle.set_title("∂f/∂θ: what a threshold learns", fontweight="bold")

    for variant, shape in shapes.items():
        line(right, shape, 2, variant)
    for variant, place in {
        "shift": (2.45, 0.45),
        "hard": (2.0, 2.35),
        "clamp": (-0.9, -1.0),
    }.items():
        right.text(*place, variant, color=colour[variant], fontsize=9)
    right.set_ylim(-2.2, 4.2)
    right.set_title("∫f: continuous, 0 at θ", fontweight="bold")
    for axes in grid.flat:
        axes.axhline(0, color=mode["grey"], lw=0.8, zorder=1)
        axes.set_xlim(*limits)
        axes.set_xticks([-1, 0, theta, 2, 3], ["−1", "0", "θ = 1", "2", "3"])
    return figure


def sparsity(mode):
    """Memory kept for the gradient and time of a step, against the share of open entries."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    measured = json.loads((FIGURES / "sparsity.json").read_text())
    titles = {
        "memory": "kept for the gradient, bytes per hidden element",
        "time": "time of a gradient step, times that of dense",
    }
    suites = [name for name in titles if any(r["suite"] == name for r in measured["rows"])]
    figure = Figure(figsize=(5 * len(suites), 3.7), layout="constrained")
    kinds = {
        "jax.nn.relu": ("jax.nn.relu", mode["grey"], "s", "-"),
        "thresholded_relu": ("thresholded_relu", mode["blue"], "o", "-"),
        "compact_mlp": ("compact_mlp", mode["green"], "^", (0, (2, 1.6))),
        "dense": ("dense, jax.nn.relu", mode["grey"], "s", "-"),
        "sparse_mlp": ("sparse_mlp", mode["red"], "D", (0, (6, 2))),
    }
    for axes, suite in zip(figure.subplots(1, len(suites), squeeze=False)[0], suites, strict=True):
        curves, column = {}, {"memory": "value", "time": "ratio"}[suite]
        for row in measured["rows"]:
            if row["suite"] == suite:
                share = float(row["shape"].split("%")[0])
                curves.setdefault(row["peer"], []).append((share, row[column]))
        for peer, points in curves.items():
            label, colour, marker, dashes = kinds[peer]
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, c=colour, marker=marker, ls=dashes, lw=2.2, ms=6, label=label)
        axes.set_xscale("log")
        shares = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("open entries, per cent")
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
        axes.legend(loc="upper left", labelcolor=mode["ink"])
        axes.set_title(titles[suite], fontweight="bold")
        if suite == "time":
            axes.axvline(100 / 32, color=mode["grey"], lw=1, ls=(0, (1, 2)))
            axes.text(3.4, 0.06, "default capacity,\nthen dense products", color=mode["grey"],
                      fontsize=9)  # fmt: skip
    return figure


def candidates(mode):
    """Entries that a screen leaves to compute for each open one, on Gaussian rows."""
    import jax.numpy as jnp
    import numpy as np
    from matplotlib.figure import Figure

    from jaxtrelu.sparse import prepare_screen

    rng, thresholds = np.random.default_rng(0), np.arange(1, 3.61, 0.1)
    styles = zip(("blue", "green", "red"), ("-", (0, (2, 1.6)), (0, (6, 2))), strict=True)
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    panels = dict(zip(("int8", "bfloat16"), figure.subplots(1, 2, sharey=True), strict=True))
    for width, (colour, dashes) in zip((64, 768, 2304), styles, strict=True):
        x = jnp.asarray(rng.standard_normal((512, width), np.float32))
        w = jnp.asarray(rng.standard_normal((8192, width), np.float32)) / width**0.5
        product = np.asarray(x @ w.T)
        for precision, axes in panels.items():
            rows, weights = prepare_screen(x, precision), prepare_screen(w, precision)
            left, right = (
                s.weights.astype("float32") * s.scale[:, None] if s.scale is not None
                else s.weights.T.astype("float32")
                for s in (rows, weights)
            )  # fmt: skip
            bound = jnp.outer(rows.norm - rows.lost, weights.lost)
            bound = np.asarray(left @ right.T + bound + jnp.outer(rows.lost, weights.norm))
            ratio = [np.sum(bound > t) / np.sum(product > t) for t in thresholds]
            axes.plot(thresholds, ratio, c=mode[colour], ls=dashes, lw=2.2, label=f"d = {width}")
    for precision, axes in panels.items():
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axes.set_ylim(0.9, 20)
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("threshold, standard deviations of the pre-activation")
        axes.set_title(f"{precision}: candidates for each open entry", fontweight="bold")
        axes.legend(loc="upper left", labelcolor=mode["ink"])
    return figure


def scaling(mode):
    """A step on 8 to 256 accelerators, and what of it is the network, as a model predicts."""
    from matplotlib.figure import Figure

    rows = json.loads((FIGURES / "scaling.json").read_text())["rows"]
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row["suite"] == "predicted" and row["mode"] != "memory":
            points = curves.setdefault((row["peer"], row["mode"]), [])
            points.append((int(row["shape"]), row["value"]))
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = {
        "features over all": (mode["red"], "D"),
        "features over 8, examples over the rest": (mode["blue"], "o"),
    }
    for (peer, what), points in curves.items():
        colour, marker = looks[peer]
        x, y = zip(*points, strict=True)
        if what == "step":
            axes.plot(x, y, c=colour, marker=marker, lw=2.2, ms=6, label=peer)
        else:
            axes.plot(x, y, c=colour, ls=(0, (2, 1.6)), lw=1.8, label="of these the network")
    (first, time), *_ = next(iter(curves.values()))
    ideal = [(n, time * first / n) for n in (first, 256)]
    axes.plot(*zip(*ideal, strict=True), c=mode["grey"], ls=(0, (6, 2)), lw=1.5, label="ideal")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({n for points in curves.values() for n, _ in points})
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_yticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    axes.set_ylim(10, 900)
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("accelerators")
    axes.set_title("a step, ms, predicted", fontweight="bold")
    axes.legend(loc="upper right", labelcolor=mode["ink"])
    return figure


def sweep(mode):
    """Time of a gradient against m at fixed L0, and against L0 at fixed m, to where both meet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    rows = json.loads((FIGURES / "sweep.json").read_text())["rows"]
    looks = {
        "dense JAX": ("dense", mode["grey"], "s", "-"),
        "jaxtrelu": ("sparse_mlp", mode["red"], "D", (0, (6, 2))),
    }
    panels = {"m": ("L0", 64, "features m"), "L0": ("m", 16384, "open features per row, L0")}
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    for axes, (varied, (fixed, value, name)) in zip(
        figure.subplots(1, 2), panels.items(), strict=True
    ):
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            sizes = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", row["shape"])}
            if sizes[fixed] == value:
                curves.setdefault(row["peer"], []).append((sizes[varied], 1e3 * row["median"]))
        for peer, points in curves.items():
            label, colour, marker, dashes = looks[peer]
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, c=colour, marker=marker, ls=dashes, lw=2.2, ms=6, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(x, [f"{n:,}" for n in x])
        low, high = axes.get_ylim()
        axes.set_yticks(ticks := [n for n in (20, 50, 100, 200, 500, 1000, 2000) if low < n < high])
        axes.set_yticklabels([f"{n:,}" for n in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        if (meet := _meeting(curves)) is not None:
            axes.axvline(meet, color=mode["grey"], lw=1, ls=(0, (1, 2)))
            axes.text(0.96 * meet, 1.05 * low, f"as fast at L0 ≈ {meet:,.0f}", color=mode["grey"],
                      fontsize=9, ha="right", va="bottom")  # fmt: skip
        axes.set_xlabel(name)
        axes.set_title(f"a gradient, ms, {fixed} = {value:,}", fontweight="bold")
        axes.legend(loc="upper left" if varied == "m" else "center left", labelcolor=mode["ink"])
    return figure


def _meeting(curves):
    """Where both curves meet, interpolated in logarithms; None: nowhere."""
    dense, sparse = (dict(curves[peer]) for peer in ("dense JAX", "jaxtrelu"))
    gaps = [(math.log2(x), math.log(sparse[x] / dense[x])) for x in sorted(dense)]
    for (x, gap), (beyond, other) in itertools.pairwise(gaps):
        if gap < 0 <= other:
            return 2 ** (x + (beyond - x) * gap / (gap - other))
    return None


PLOTS = {
    "functions": functions,
    "sparsity": sparsity,
    "candidates": candidates,
    "sweep": sweep,
    "scaling": scaling,
}


def settings(mode):
    """How the plots look: transparent, in the colours of the page, with text as paths."""
    return {
        "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": mode["grey"],
        "axes.labelcolor": mode["ink"], "axes.titlecolor": mode["ink"], "text.color": mode["ink"],
        "axes.grid": True, "axes.axisbelow": True, "grid.color": mode["faint"],
        "grid.linewidth": 0.7, "xtick.color": mode["grey"], "ytick.color": mode["grey"],
        "xtick.labelcolor": mode["ink"], "ytick.labelcolor": mode["ink"], "legend.frameon": False,
        "axes.facecolor": "none", "svg.fonttype": "path", "svg.hashsalt": "jaxtrelu",
    }  # fmt: skip


def main() -> None:
    """Writes those that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*PLOTS, *DRAWINGS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(names)}")
    args = parser.parse_args()
    for name in args.names or names:
        if name not in names:
            parser.error(f"there is no picture {name!r}: known are {', '.join(names)}.")
        for kind, mode in MODES.items():
            path = PICTURES / f"{name}-{kind}.svg"
            write_file(path, DRAWINGS[name](mode) if name in DRAWINGS else plotted(name, mode))
            print(f"wrote {path.relative_to(ROOT)}")


def plotted(name, mode) -> bytes:
    """A plot as the content of an SVG file; the same data give the same bytes."""
    import io

    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context(settings(mode)):
        PLOTS[name](mode).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


if __name__ == "__main__":
    main()
