"""`sae`: what it prints. What it trains is in test_sae_training.py."""

import contextlib
import io
from types import SimpleNamespace

import pytest

from jaxtrelu._cli import console
from jaxtrelu._cli.sae import report

LAST = dict.fromkeys(
    ("l0", "coefficient", "reconstruction", "dead_share", "window_share", "threshold_50"), 0.5
)
SUMMARY = {"data": {"name": "mine", "rows": 1000, "dimension": 16}, "result": LAST}


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "λ"), ("ascii", "lambda")])
def test_the_table_in_the_terminals_encoding(encoding, name):
    """In line, whatever the characters."""
    settings = SimpleNamespace(features=32, steps=200, target_l0=4.0)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console.spell_out(stream)  # as `main` does
    with contextlib.redirect_stdout(stream):
        report.show(SUMMARY, settings, SimpleNamespace(resumed_from=150), 2.0)
        stream.flush()
    lines = stream.buffer.getvalue().decode(encoding).splitlines()
    edge = "│" if encoding == "utf-8" else "|"
    table = [line for line in lines if line.startswith(edge)]
    assert any(line.split()[:2] == [edge, name] for line in table)
    assert len({len(line) for line in table}) == 1
    assert "for 50 steps" in "".join(table)
    assert "resumed from step 150" in lines
    assert any(f"thresholds and {name} find their place" in line for line in lines)
