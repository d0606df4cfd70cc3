#!/usr/bin/env python
"""Draws what `sparse_mlp.py --only sweep --json FIGURES` measured.

Time of the gradient against m at fixed L0, and against L0 at fixed m, with the crossover to dense
products marked where both curves meet, interpolated between neighbouring points in logarithms.
"""

import argparse
import io
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt

from jaxtrelu._files import check_file, write_file

LABELS = {"dense JAX": ("dense", "#888888"), "jaxtrelu": ("jaxtrelu.sparse_mlp", "#c44536")}


def points(rows, varied):
    """{peer: ([sizes], [milliseconds])} of the rows in which only `varied`, "m" or "L0", varies."""
    at = [({k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", r["shape"])}, r) for r in rows]
    fixed = {"m": ("L0", 64), "L0": ("m", 16384)}[varied]
    found = {}
    for sizes, row in sorted(at, key=lambda pair: pair[0][varied]):
        if sizes[fixed[0]] == fixed[1]:
            x, y = found.setdefault(row["peer"], ([], []))
            x.append(sizes[varied])
            y.append(1e3 * row["median"])
    return found, f"{fixed[0]} = {fixed[1]:,}"


def crossover(found):
    """Where the curves meet, or None."""
    (x, dense), (_, sparse) = found["dense JAX"], found["jaxtrelu"]
    gap = [math.log(s / d) for s, d in zip(sparse, dense, strict=True)]
    for i in range(len(x) - 1):
        if gap[i] < 0 <= gap[i + 1]:
            share = gap[i] / (gap[i] - gap[i + 1])
            return math.exp(math.log(x[i]) + share * math.log(x[i + 1] / x[i]))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="JSON of the sweep")
    parser.add_argument("png", type=check_file, help="where to write the picture")
    args = parser.parse_args()
    rows = [r for r in json.loads(args.figures.read_text())["rows"] if r["suite"] == "sweep"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = {"m": "features m", "L0": "open features per row, L0"}
    for axis, varied in zip(axes, names, strict=True):
        found, fixed = points(rows, varied)
        for peer, (x, y) in found.items():
            label, colour = LABELS[peer]
            axis.loglog(x, y, "o-", label=label, color=colour, base=2)
        if (meet := crossover(found)) is not None:
            axis.axvline(meet, color="black", linestyle=":")
            axis.annotate(
                f"crossover\nL0 ≈ {meet:.0f}", (meet, 1), xycoords=("data", "axes fraction"),
                xytext=(-6, -6), textcoords="offset points", ha="right", va="top",
            )  # fmt: skip
        axis.set(xlabel=names[varied], ylabel="gradient, ms", title=fixed)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper left", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_file(args.png, picture.getvalue())
    print(f"written: {args.png}")


if __name__ == "__main__":
    main()
