"""README and pages: their lines run, their commands exist, and what they link to is there."""

import doctest
import importlib
import importlib.util
import json
import os
import re
import shlex
import types
from pathlib import Path
from pydoc import locate

import pytest

from jaxtrelu._cli import parser

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page, language):
    """(first line, text) of each fenced block in a language."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found[1]


# Packages that a page may speak of, and that `make conformance` brings.
OPTIONAL = ("equinox", "keras", "onnx", "onnxruntime", "torch")


def missing(package):
    """Skips where an optional package is not installed, except where nothing may be skipped."""
    if importlib.util.find_spec(package) is None:
        assert not os.environ.get("JAXTRELU_REQUIRE_CONFORMANCE"), f"{package} is not installed"
        pytest.skip(f"{package} is not installed")


PROGRAMS = [page for page in PAGES if any(blocks(page, "python"))]
#: Pages that train or compile for long, by the calls that the others and the docstrings have too.
LONG = {"autoencoders.md", "memory.md", "coming_from_saelens.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.name in LONG)) for p in PROGRAMS],
    ids=[str(p.relative_to(ROOT)) for p in PROGRAMS],
)
def test_lines_run(page, tmp_path, monkeypatch):
    """The blocks of a page, one after the other, with the names of those before."""
    text = "".join(code for _, code in blocks(page, "python"))
    for package in OPTIONAL:
        if re.search(rf"^(>>> )?(import|from) .*\b{package}\b", text, re.MULTILINE):
            missing(package)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", "folder": tmp_path}
    for first, code in blocks(page, "python"):
        if ">>> " not in code:
            exec(compile("\n" * first + code, str(page), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), first)
        runner, said = doctest.DocTestRunner(optionflags=FLAGS), []
        runner.run(test, out=said.append, clear_globs=False)
        assert test.examples
        assert runner.summarize(verbose=False).failed == 0, "".join(said)
        names.update(test.globs)


def test_arrays_of_examples_say_their_dtype():
    """Without one jnp.full is of weak type: in a user's loop the first step is compiled twice."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "jaxtrelu").rglob("*.py")}
    texts |= {page: "".join(code for _, code in blocks(page, "python")) for page in PAGES}
    for file, text in texts.items():
        for found in re.finditer(r"jnp\.full\((?:[^()]|\([^()]*\))*\)", text):
            assert re.search(r"dtype|float\d|int\d", found[0]), (file, found[0])


def test_most_pages_have_lines_that_run():
    assert len(PROGRAMS) >= 8


COMMANDS = [
    (page, line.removeprefix("$ "))
    for page in PAGES
    for _, text in blocks(page, "console")
    for line in text.splitlines()
]


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page.name}: {line[:60]}" for page, line in COMMANDS]
)
def test_commands_are_understood(page, line):
    """Commands of the library are parsed, and scripts are there with the options named."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "jaxtrelu":
        parser.build().parse_args(words[1:])
        return
    assert words[0] == "python", f"{line}: neither jaxtrelu nor python"
    script = ROOT / words[1]
    if script.name == "train.py":
        return  # the reader's own
    harness = script.parent / "_harness.py"
    known = script.read_text() + (harness.read_text() if harness.is_file() else "")
    for option in re.findall(r"--[\w-]+", line):
        assert f'"{option}"' in known, f"{script.name} has no {option}"


def anchors(page):
    """What a link can lead to in a page: its headings, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading).lower()
        yield re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip())


@by_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in map("".join, links):
        if re.match(r"https://[\w.-]+\.\w+(/\S*)?$", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


MODULES = ("", ".bits", ".sparse", ".nnx", ".linen", ".theory", ".plot", ".sae", ".interop")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module):
    """Under its module, or where the same thing is called from the top."""
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    found = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = importlib.import_module(f"jaxtrelu{module}")
    for name in public.__all__:
        thing = getattr(public, name)
        if isinstance(thing, types.ModuleType | str):
            continue
        same = {one for one in found if one.endswith(f".{name}") and locate(one) is thing}
        assert same, f"jaxtrelu{module}.{name}"


def test_every_command_of_the_makefile_that_is_named_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert name in targets, f"{page.name}: make {name}"


def test_drawings_are_those_of_their_script(monkeypatch):
    """A drawing is changed in its script; of plots, whose bytes Matplotlib decides, only size."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_site")
    import pictures

    for kind, mode in pictures.MODES.items():
        for name, drawing in pictures.DRAWINGS.items():
            found = (pictures.PICTURES / f"{name}-{kind}.svg").read_text(encoding="utf-8")
            assert found == drawing(mode), f"{name}-{kind}.svg: run `make pictures`"
        for name in pictures.PLOTS:
            assert (pictures.PICTURES / f"{name}-{kind}.svg").stat().st_size > 10_000


def test_the_drawing_has_every_room(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_site")
    import drawings
    from test_structure import LAYERS

    drawn = [set(names.split(", ")) for names, _, _ in reversed(drawings._ROOMS)]
    assert set().union(*drawn) == {name for row in LAYERS for name in row}


@pytest.fixture
def tables(monkeypatch):
    """The script that writes the tables of figures."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_site")
    return importlib.import_module("tables")


def test_tables_are_those_of_their_figures(tables):
    found = tables.pages()
    names = [name for page in found.values() for name in page]
    assert sorted(names) == sorted(tables.TABLES)  # each in one place
    for page in found:
        text = page.read_text(encoding="utf-8")
        assert tables.written(text)[0] == text, f"{page.name}: run `make tables`"


def test_every_file_of_figures_says_how_it_was_made():
    files = sorted((ROOT / "docs" / "figures").glob("*.json"))
    assert len(files) >= 2
    for file in files:
        content = json.loads(file.read_text())
        environment = content["about" if "about" in content else "environment"]
        assert {"command", "date", "jax", "python", "device", "threads"} <= set(environment)
        words = [w for w in shlex.split(environment["command"]) if not re.match(r"[A-Z_]+=", w)]
        if words[0] == "jaxtrelu":
            parser.build().parse_args(words[1:])
        else:
            assert words[0] == "python" and (ROOT / words[1]).is_file(), file.name


def test_a_table_says_where_it_is_from_and_what_is_amiss(tables):
    row = {"suite": "s", "shape": "1", "mode": "m", "peer": "p", "value": 0.5625}
    key = ("s", "1", "m", "p")
    environment = {"command": "python x.py", "jax": "0.10.2", "date": "2026-11-28"}
    found = tables.Figures(environment, {key: row, ("s", "2", "m", "p"): row})
    newer = tables.Figures({**environment, "jax": "0.12.0"}, {})
    other = tables.Figures({**environment, "command": "python y.py"}, {})
    assert tables.sources(found, newer, other, found) == (
        "`python x.py`, JAX 0.10.2, 2026-11-28 and JAX 0.12.0, 2026-11-28; "
        "`python y.py`, JAX 0.10.2, 2026-11-28"
    )
    assert tables.versions(found, newer) == "JAX 0.10.2 and 0.12.0, 2026-11-28"
    assert found.value("s", "1", "", "") == 0.5625
    for asked, count in ((("s", "", "m", "p"), 2), (("s", "3", "m", "p"), 0)):
        with pytest.raises(KeyError, match=f"{count} rows"):
            found.value(*asked)
    written = [tables.short(0.5625), tables.short(1.083), tables.short(0.0), tables.short(0.025, 3)]
    assert written == [".56", "1.08", "0", ".025"]
    assert [tables.significant(x) for x in (14.94, 3629.6, 0.5)] == ["14.9", "3,630", "0.50"]
    powers = [tables.power(x) for x in (None, 0.0, 0.84, 44.2, 3e14, 9.7e-12, 0.0312)]
    assert powers == ["∞", "0", ".8", "44", "3·10¹⁴", "10⁻¹¹", ".03"]
    assert [tables.signed(x) for x in ("-0.012", "+10.50", "-0.000")] == ["−.012", "+10.50", ".000"]
    assert tables.table(("a", "", ""), [("1", "", "")]) == (
        "| a | | |\n| --- | --- | --- |\n| 1 | | |\n"
    )


def test_the_readme_has_the_figures_that_were_measured(tables):
    readme = (ROOT / "README.md").read_text()
    for (suite, shape, mode, peer), row in tables.Figures.read("models").rows.items():
        if (suite, mode) == ("memory", "temporary memory") and shape.startswith(("MLP", "ConvNet")):
            assert f"{row['value']:.0f} MB" in readme, (shape, peer)
