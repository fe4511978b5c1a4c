"""The pages of the site, as mkdocs asks for them: the checkout's own texts, and a page of reference a module.

Paths in the site are those in the checkout. A link thus has one form, on a code host and in the site.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parents[2]
TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "CITATION.cff")
FOLDERS = ("docs", "reports/published")
PACKAGES = {"": "src/depthgauge", "models": "models", "studies": "studies", "reports": "reports"}
NAMED = re.compile(r"\bdocs/([\w-]+)\.md")
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?https?:|<link\b[^>]*\bhref=\"?https?:[^>]*>")


def on_startup(**_: Any) -> None:
    """Lays the package out as it is installed, for mkdocstrings, which reads its source and runs none of it."""
    laid_out = CHECKOUT / "build" / "packages" / "depthgauge"
    shutil.rmtree(laid_out, ignore_errors=True)
    for name, source in PACKAGES.items():
        for path in (CHECKOUT / source).rglob("*.py"):
            copy = laid_out / name / path.relative_to(CHECKOUT / source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes the place of what mkdocs found below `docs`: texts, docs, published reports, and the reference."""
    kept = [file for file in files if file.generated_by or not str(file.abs_src_path).startswith(config.docs_dir)]
    paths = [CHECKOUT / name for name in TEXTS]
    for folder in FOLDERS:
        paths += sorted(
            path for path in (CHECKOUT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
    mine = [File.generated(config, str(path.relative_to(CHECKOUT)), abs_src_path=str(path)) for path in paths]
    mine += [File.generated(config, path, content=reference(path)) for path in references(config.nav)]
    return Files([*kept, *mine])


def on_nav(nav: Navigation, files: Files, **_: Any) -> None:
    """Refuses a page of the guide that is in no menu."""
    listed = {page.file.src_uri for page in nav.pages}
    if lost := [
        file.src_uri
        for file in files.documentation_pages()
        if file.src_uri.startswith("docs/") and file.src_uri not in listed
    ]:
        raise PluginError(f"in no menu of mkdocs.yml: {', '.join(lost)}")


def references(nav: Any) -> list[str]:
    """The pages of the reference that the navigation names."""
    if isinstance(nav, str):
        return [nav] if nav.startswith("reference/") else []
    inner = nav.values() if isinstance(nav, dict) else nav
    return [path for item in inner for path in references(item)]


def reference(path: str) -> str:
    """A page of reference, made of a module's docstrings.

    A function that bears the name of its submodule hides behind it, and is named once more.
    """
    name = Path(path).stem
    module = "depthgauge" if name == "depthgauge" else f"depthgauge.{name}"
    source = CHECKOUT / "build" / "packages" / module.replace(".", "/") / "__init__.py"
    imported = (
        re.findall(rf"^from ({re.escape(module)}\.(\w+)) import (.+)$", source.read_text("utf-8"), re.MULTILINE)
        if source.is_file()
        else []
    )
    hidden = [f"{where}.{own}" for where, own, names in imported if own in re.split(r"\W+", names)]
    return f"::: {module}\n" + "".join(f"\n::: {name}\n    options:\n      heading_level: 2\n" for name in hidden)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Opens folded text, as code hosts do; leads from a report to its one page, and keeps it out of the search."""
    markdown = markdown.replace("<details>", '<details markdown="1">')
    if not page.file.src_uri.startswith("reports/published/cpu"):
        return markdown
    page.meta["search"] = {"exclude": True}
    if page.file.name == "report" and Path(str(page.file.abs_src_path)).with_name("index.html").exists():
        title, _newline, rest = markdown.partition("\n")
        return f"{title}\n\n[This report as one page, to filter and enlarge](index.html)\n{rest}"
    return markdown


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Links the pages of the guide that a docstring names."""
    return (
        NAMED.sub(r'<a href="../docs/\1.html">docs/\1.md</a>', html)
        if page.file.src_uri.startswith("reference/")
        else html
    )


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuses a page that fetches something when it is read."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from the network: {found[0]}")
    return output
