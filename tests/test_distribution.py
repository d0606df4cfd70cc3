"""What the wheel and the sdist hold, that they are built to the same bytes, and what is needed."""

import ast
import collections
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
from hatchling.builders.wheel import WheelBuilder

import jaxtrelu

ROOT = Path(__file__).parent.parent


def _held(builder) -> set[str]:
    return {file.relative_path for file in builder.recurse_included_files()}


def test_the_sdist_holds_what_its_tests_read():
    held = _held(sdist.SdistBuilder(str(ROOT)))
    for folder in ("jaxtrelu", "tests", "benchmarks", "examples", "notebooks", "docs"):
        wanted = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*.*")
            if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
        }
        assert wanted and wanted <= held, f"missing: {sorted(wanted - held)[:5]}"
    texts = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
    for name in (*texts, "CITATION.cff", "LICENSE", "Makefile", "mkdocs.yml"):
        assert name in held


def test_the_wheel_holds_the_package_and_nothing_else():
    held = _held(WheelBuilder(str(ROOT)))
    assert "jaxtrelu/py.typed" in held and "jaxtrelu/__init__.py" in held
    assert {path.split("/")[0] for path in held} == {"jaxtrelu"}
    page = {f"jaxtrelu/sae/_report/page.{kind}" for kind in ("html", "css", "js")}
    assert {path for path in held if not path.endswith((".py", "py.typed"))} == page


def test_there_is_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert jaxtrelu.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == version


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_the_interpreter_that_was_asked_for_or_none(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")  # which the question for a version ends with, there
    old.chmod(0o755)

    def make(python, target="build/.venv/bin/python"):
        command = ["make", "-C", str(tmp_path), f"PYTHON={python}", "VENV=build/.venv", target]
        return subprocess.run(command, capture_output=True, text=True)

    refused = make(old)
    assert refused.returncode and f"No Python 3.11 or newer among: {old}." in refused.stderr
    assert not (tmp_path / "build").exists()
    (tmp_path / "build" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "build" / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert f"and not of PYTHON={old}" in make(old, "help").stderr
    assert "not of" not in make(sys.executable, "help").stderr


# the same bytes, from wherever they are built

#: The folders of the distribution, and how many files each holds at least.
FOLDERS = {
    "jaxtrelu": 100, "tests": 80, "benchmarks": 15, "examples": 4, "notebooks": 4, "docs": 10,
}  # fmt: skip


def _copied(to: Path, when: int) -> Path:
    """The project elsewhere, with other dates: what is built may not depend on either."""
    ignored = shutil.ignore_patterns(
        "__pycache__", ".*_cache", ".hypothesis", ".venv*", "build", "dist", "results"
    )
    shutil.copytree(ROOT, to, ignore=ignored, symlinks=True)
    for path in to.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (when, when))
    return to


def _built(root: Path, to: Path) -> dict[str, bytes]:
    for builder in (sdist.SdistBuilder(str(root)), WheelBuilder(str(root))):
        list(builder.build(directory=str(to), versions=["standard"]))
    return {path.suffix: path.read_bytes() for path in sorted(to.iterdir())}


def test_builds_are_reproducible_and_hold_what_is_listed(tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    first = _built(_copied(tmp_path / "one", 10**9), tmp_path / "first")
    second = _built(_copied(tmp_path / "a longer path", 2 * 10**9), tmp_path / "second")
    assert set(first) == {".gz", ".whl"}
    assert first == second

    with tarfile.open(fileobj=io.BytesIO(first[".gz"])) as archive:
        paths = [member.name.partition("/")[2] for member in archive]
    assert len(set(paths)) == len(paths)
    top = collections.Counter(path.partition("/")[0] for path in paths if "/" in path)
    assert set(top) == set(FOLDERS)
    assert all(top[folder] >= least for folder, least in FOLDERS.items())
    alone = {path for path in paths if "/" not in path}
    assert alone == {
        ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile",
        "PKG-INFO", "README.md", "SECURITY.md", "mkdocs.yml", "pyproject.toml",
    }  # fmt: skip
    assert not [path for path in paths if re.search(r"__pycache__|\.pyc$|\.venv|\.part$", path)]

    with zipfile.ZipFile(io.BytesIO(first[".whl"])) as archive:
        names = archive.namelist()
        (record,) = (name for name in names if name.endswith("RECORD"))
        listed = {line.partition(",")[0] for line in archive.read(record).decode().splitlines()}
    assert listed == set(names) and len(names) == len(set(names))
    (about,) = {name.partition("/")[0] for name in names} - {"jaxtrelu"}
    assert about.endswith(".dist-info")
    others = {name.partition("/")[2] for name in names if name.startswith(about)}
    assert others == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


# what PyPI shows


def _about(builder, folder: Path) -> tuple[str, str]:
    """The fields and the long description, as they are in what was built."""
    (path,) = builder.build(directory=str(folder), versions=["standard"])
    if path.endswith(".whl"):
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
            text = archive.read(name).decode()
    else:
        with tarfile.open(path) as archive:
            (name,) = (n for n in archive.getnames() if n.endswith("/PKG-INFO"))
            text = archive.extractfile(name).read().decode()
    fields, _, shown = text.partition("\n\n")
    return fields, shown


def _targets(text: str) -> list[str]:
    """Where its links and pictures lead, those of code left out."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)]*)\)|(?:src|srcset|href)=\"([^\"]*)\"", text)
    return ["".join(one) for one in found]


@pytest.mark.parametrize("kind", [WheelBuilder, sdist.SdistBuilder])
def test_the_long_description_leads_somewhere(kind, tmp_path, monkeypatch):
    """On PyPI there is no repository beside it: addresses are whole, and what they name is here."""
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://code.example")
    monkeypatch.setenv("GITHUB_REPOSITORY", "somebody/jaxtrelu")
    fields, shown = _about(kind(str(ROOT)), tmp_path)
    place = "https://code.example/somebody/jaxtrelu"
    assert f"Project-URL: Repository, {place}" in fields
    targets = _targets(shown)
    assert len(targets) == len(_targets((ROOT / "README.md").read_text())) - 1  # no dark picture
    for target in targets:
        found = re.fullmatch(rf"{place}/(raw|blob)/v{jaxtrelu.__version__}/([^#]+)(#.*)?", target)
        assert found and (ROOT / found[2]).is_file(), target
        assert (found[1] == "raw") == found[2].endswith(".svg")
    assert "<" not in re.sub(r"```.*?```|`[^`]*`", "", shown, flags=re.DOTALL)

    monkeypatch.delenv("GITHUB_REPOSITORY")
    fields, alone = _about(kind(str(ROOT)), tmp_path)
    assert not _targets(alone) and "Project-URL" not in fields
    without = re.sub(r"!\[[^]]*\]\([^)]*\)\n*|\]\([^)]*\)", "", shown)
    assert alone.replace("[", "") == without.replace("[", "")


@pytest.mark.slow
def test_the_tests_of_the_sdist_find_what_they_read(tmp_path):
    """Collected where nothing else is: what a test module reads when it is imported is there."""
    list(sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = (one for one in tmp_path.iterdir() if one.is_dir())
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "tests"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_structure.py"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


# what is needed

#: What the core imports; ml_dtypes and NumPy are requirements of JAX itself.
CORE = {"jax", "jaxtyping", "numpy"}
#: Rooms that need an extra.
EXTRAS = {"linen", "nnx", "sae", "plot", "_cli", "interop", "__main__", "theory"}


def test_the_core_needs_jax_alone():
    found: dict[str, set[str]] = {}
    for path in (ROOT / "jaxtrelu").rglob("*.py"):
        room = path.relative_to(ROOT / "jaxtrelu").with_suffix("").parts[0]
        if room in EXTRAS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names | {"jaxtrelu"}:
                    found.setdefault(top, set()).add(path.name)
    assert set(found) <= CORE, found
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", one)[0] for one in required} == CORE
    # By range: a lower end, and no upper one that would keep a newer JAX away.
    assert all(">=" in one and "<" not in one and "==" not in one for one in required)
