"""What the wheel and the sdist hold, asked of the build back end without building them."""

import re
import tomllib
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
    for folder in ("jaxtrelu", "tests", "benchmarks", "notebooks", "docs"):
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
