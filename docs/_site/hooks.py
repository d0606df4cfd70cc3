"""What MkDocs is told beside mkdocs.yml: pages that lie elsewhere, and pictures for dark mode.

- README.md is the first page; CONTRIBUTING.md, CHANGELOG.md and SECURITY.md are pages.
- Notebooks are shown as they were executed into build/notebooks (`make notebooks`), converted to
  Markdown, so that their headings and words are found by the search as those of other pages.
- A link to a file of the repository leads to its page, where it has one.
- Where a table of figures is from stands below it in small letters.
- ``<picture>``, which follows the reader's system, becomes two pictures, of which the site shows
  the one of the mode that was chosen on it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
EXECUTED = ROOT / "build" / "notebooks"

#: Files outside of docs/, by their path in the repository, and the pages that they become.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}

_LINK = re.compile(r"(\]\(|src=\"|srcset=\")([^)\s\"#:]+)(#[^)\s\"]*)?(?=[)\"])")
_PICTURE = re.compile(
    r"<picture>\s*<source[^>]*srcset=\"(?P<dark>[^\"]+)\"[^>]*>\s*"
    r"<img alt=\"(?P<alt>[^\"]*)\" src=\"(?P<light>[^\"]+)\"[^>]*>\s*</picture>"
)

_SOURCE = re.compile(r"^(\(.*\.\))(?=\n\n<!-- end of the table -->)", re.MULTILINE)


@event_priority(100)
def on_files(files: Files, config) -> Files:
    """Adds the pages that lie outside of docs/."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_shown(text, source)))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for file in _notebook_files(notebook.name, config):
            files.append(file)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Follows links out of docs/ to the pages of what they name."""
    if page.file.generated_by is not None:
        return markdown
    return _shown(markdown, posixpath.join("docs", page.file.src_uri))


def _shown(markdown: str, source: str) -> str:
    """The text of a file of the repository as that of its page."""
    here = posixpath.dirname(_page_of(source))

    def followed(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        page = posixpath.relpath(_page_of(target), here or ".")
        return f"{found[1]}{page}{found[3] or ''}"

    shown = _SOURCE.sub(r"<small>\1</small>", _LINK.sub(followed, markdown))
    return _PICTURE.sub(_two_pictures, shown)


def _page_of(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path.startswith("notebooks/"):
        return str(Path(path).with_suffix(".md"))
    return ELSEWHERE.get(path) or path.removeprefix("docs/")


def _two_pictures(found: re.Match) -> str:
    alt, light, dark = found["alt"], found["light"], found["dark"]
    return f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)"


def _notebook_files(name: str, config) -> list[File]:
    """The page of an executed notebook, and its pictures."""
    import nbformat
    from nbconvert.exporters import MarkdownExporter

    executed = EXECUTED / name
    if not executed.is_file():
        raise PluginError(f"{executed.relative_to(ROOT)} is missing: run `make notebooks`.")
    stem = executed.stem
    exporter = MarkdownExporter()
    folder = f"{stem}_files"
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        cell.outputs = _together(cell.get("outputs", []))
    text, resources = exporter.from_notebook_node(
        notebook, resources={"output_files_dir": folder, "unique_key": stem}
    )
    pictures = [
        File.generated(config, f"notebooks/{path}", content=content)
        for path, content in resources["outputs"].items()
    ]
    # In the repository pages are in docs/, beside notebooks/; in the site notebooks/ is among them.
    text = text.replace("](../docs/", "](../")
    page = File.generated(config, f"notebooks/{stem}.md", content=text)
    return [page, *pictures]


def _together(outputs: list) -> list:
    """What a cell prints is one box, in however many parts it came."""
    found: list = []
    for output in outputs:
        last = found[-1] if found else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            found.append(output)
    return found
