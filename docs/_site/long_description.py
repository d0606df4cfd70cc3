"""README.md as PyPI shows it, where a path of the repository leads nowhere: a hook of Hatch.

The repository is the one of the workflow that builds (`GITHUB_SERVER_URL`, `GITHUB_REPOSITORY`):
links and pictures become addresses there, at the tag of the version, and the project's page names
it. Built elsewhere, a text names no place that it cannot know: pictures are left out, and of a link
its words stay. Hatch comes with every build, so this needs nothing else.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCED = re.compile(r"^(```.*?^```\n)", re.DOTALL | re.MULTILINE)
# PyPI's page is light, and it shows one picture.
_PICTURE = re.compile(
    r"<picture>.*?<img alt=\"(?P<alt>[^\"]*)\" src=\"(?P<path>[^\"]+)\"[^>]*>\s*</picture>\n*",
    re.DOTALL,
)
_LINK = re.compile(r"\[(?P<words>[^]]+)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
_COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)


def repository_of(environment: Mapping[str, str]) -> str | None:
    """The address of the repository whose workflow builds, or None."""
    name = environment.get("GITHUB_REPOSITORY")
    server = environment.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{server.rstrip('/')}/{name}" if name else None


def long_description(text: str, repository: str | None, tag: str) -> str:
    """The text with absolute addresses, or without what would need one."""

    def picture(found: re.Match) -> str:
        if repository is None:
            return ""
        return f"![{found['alt']}]({repository}/raw/{tag}/{found['path']})\n\n"

    def link(found: re.Match) -> str:
        if repository is None:
            return found["words"]
        place = f"{repository}/blob/{tag}/{found['path']}{found['anchor'] or ''}"
        return f"[{found['words']}]({place})"

    def shown(part: str) -> str:
        # Links first: a picture that is absolute by then is none of them.
        return _PICTURE.sub(picture, _LINK.sub(link, _COMMENT.sub("", part)))

    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else shown(part) for part in parts)


class LongDescription(MetadataHookInterface):
    """Sets the dynamic fields `readme` and `urls` of pyproject.toml."""

    def update(self, metadata: dict) -> None:
        """Called by Hatch before anything is built."""
        repository, tag = repository_of(os.environ), f"v{metadata['version']}"
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = long_description(text, repository, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {}
        if repository is not None:
            changes = f"{repository}/blob/{tag}/CHANGELOG.md"
            metadata["urls"] = {"Repository": repository, "Changelog": changes}
