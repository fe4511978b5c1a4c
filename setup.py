"""Gives the package its long description: README.md as a package index shows it, without a checkout beside it.

`[tool.depthgauge] repository` of pyproject.toml is the address that relative links lead to. Until there is one, links
are words and pictures their captions, so that no page is published whose links lead nowhere. All else is in
pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?!https?:)([^)\s]+)\)")


def absolute(text: str, repository: str, version: str) -> str:
    """Returns Markdown whose relative links lead to the release `version` of a repository, or are words without one."""
    if not repository:
        return LINK.sub(r"\1", PICTURE.sub(r"*\1*", text))
    place = repository.rstrip("/")
    text = PICTURE.sub(rf"![\1]({place}/raw/v{version}/\2)", text)
    text = LINK.sub(
        lambda link: link[0] if link[2].startswith("#") else f"[{link[1]}]({place}/blob/v{version}/{link[2]})", text
    )
    return LINK.sub(rf"[\1]({place}/blob/v{version}/README.md\2)", text)


def addresses(repository: str, version: str) -> dict[str, str]:
    """Returns the addresses that a package index lists; none without a repository."""
    if not repository:
        return {}
    files = f"{repository.rstrip('/')}/blob/v{version}"
    return {
        "Repository": repository,
        "Documentation": f"{files}/docs/reading-a-report.md",
        "Published reports": f"{files}/reports/published/README.md",
        "Changelog": f"{files}/CHANGELOG.md",
    }


def main() -> None:
    """Builds the distribution."""
    repository = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["tool"]["depthgauge"]["repository"]
    found = re.search(r'__version__ = "([^"]+)"', (HERE / "src/depthgauge/version.py").read_text("utf-8"))
    version = found[1] if found else ""
    setup(
        long_description=absolute((HERE / "README.md").read_text("utf-8"), repository, version),
        long_description_content_type="text/markdown",
        project_urls=addresses(repository, version),
    )


if __name__ == "__main__":
    main()
