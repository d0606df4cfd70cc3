"""What docs/figures holds, and how numbers, tables and sources are written."""

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "docs" / "figures"


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a benchmark wrote: its environment, and its rows by (suite, shape, mode, peer)."""

    environment: dict[str, str]
    rows: dict[tuple[str, str, str, str], dict]

    @classmethod
    def read(cls, name: str) -> "Figures":
        """From docs/figures: of a benchmark, or the depth.json of `jaxtrelu depth`.

        Of the latter a row is a net and a column: ("depth", name of the net, column, "").
        """
        content = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
        if "about" in content:
            nets = itertools.product(content["results"], content["columns"])
            return cls(
                content["about"],
                {
                    ("depth", net["name"], column, ""): {"value": net[column]}
                    for net, column in nets
                },
            )
        rows = {(r["suite"], r["shape"], r["mode"], r["peer"]): r for r in content["rows"]}
        return cls(content["environment"], rows)

    def row(self, *key: str) -> dict:
        """The one row whose suite, shape, mode and peer are these; "" stands for any."""
        found = [
            row
            for there, row in self.rows.items()
            if all(asked in ("", one) for asked, one in zip(key, there, strict=True))
        ]
        if len(found) != 1:
            raise KeyError(f"{key}: {len(found)} rows")
        return found[0]

    def value(self, *key: str) -> float:
        """Of a fact."""
        return self.row(*key)["value"]

    def ms(self, *key: str) -> float:
        """The median time of a case."""
        return 1e3 * self.row(*key)["median"]

    def ratio(self, *key: str) -> float:
        """To the baseline of its case, in the same turns."""
        return self.row(*key)["ratio"]


def short(value: float, digits: int = 2) -> str:
    """A number of size 1, without the zero in front: .56, 1.08."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value else "0"


def significant(value: float, digits: int = 3) -> str:
    """As many digits as were measured, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):,.{max(0, digits - len(str(int(abs(value)))))}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return re.sub(r"\|  (?=\|)", "| ", text)


def sources(*found: Figures) -> str:
    """Where all of them are from; what differs in nothing but the version and the date as one."""
    together: dict[str, list[str]] = {}
    for one in found:
        when = f"JAX {one.environment['jax']}, {one.environment['date']}"
        together.setdefault(one.environment["command"], []).append(when)
    return "; ".join(
        f"`{command}`, {' and '.join(dict.fromkeys(when))}" for command, when in together.items()
    )


def versions(*found: Figures) -> str:
    """Their versions of JAX and their dates."""
    jax, dates = (sorted({one.environment[key] for one in found}) for key in ("jax", "date"))
    return f"JAX {' and '.join(jax)}, {' and '.join(dates)}"


def signed(text: str) -> str:
    """As it is printed: a minus that is one, and no zero in front."""
    if not float(text):
        text = text.lstrip("-+")
    return re.sub(r"\b0\.", ".", text.replace("-", "−"))


def power(value: float | None) -> str:
    """A number of which the size counts, far from 1 as a power of ten; None: infinite."""
    if value is None:
        return "∞"
    if value == 0:
        return "0"
    if 0.001 <= value < 1000:
        digits = 0 if value >= 10 else 1 if value >= 0.1 else 2 if value >= 0.01 else 3
        return short(value, digits)
    return scientific(value)


def scientific(value: float) -> str:
    """One digit and a power of ten: 7·10⁻⁴, 10⁻³."""
    leading, exponent = f"{value:.0e}".split("e")
    digits = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if leading == "1" else f"{leading}·10{digits}"
