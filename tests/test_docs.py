"""The texts of the checkout: every link leads somewhere, every snippet's names and every command's options exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import shlex
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import depthgauge
from depthgauge.cli import main

CHECKOUT = Path(__file__).parent.parent
PUBLISHED = CHECKOUT / "reports" / "published"
TEXTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md"), PUBLISHED / "README.md"])
PAGES = [str(path.relative_to(CHECKOUT)) for path in TEXTS]
EXAMPLES = [path.read_text("utf-8") for path in (CHECKOUT / "docs" / "examples").rglob("*.py")]
MARKDOWN = MarkdownIt("commonmark").enable("table")
COMMAND = re.compile(r"(?:^|[\s/(])depthgauge ((?:check|run|report|list|profile|plan|bench)\b.*)")


@cache
def tokens(path: Path) -> list[Token]:
    return MARKDOWN.parse(path.read_text("utf-8"))


def inline(path: Path) -> Iterator[Token]:
    for token in tokens(path):
        yield from token.children or []


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that a code host gives to headings."""
    all_of_it = tokens(path)
    titles = [all_of_it[i + 1].content for i, token in enumerate(all_of_it) if token.type == "heading_open"]
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


def links(path: Path) -> list[str]:
    found = [
        token.attrGet("href") or token.attrGet("src") for token in inline(path) if token.type in {"link_open", "image"}
    ]
    return [str(link) for link in found if not re.match(r"[a-z]+:", str(link))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    path = CHECKOUT / page
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(CHECKOUT), f"{page}: {link} leaves the checkout"
        assert not anchor or anchor in anchors(target), f"{page}: {link} names no heading"


def test_links_are_found_and_missing_ones_told() -> None:
    assert sum(len(links(path)) for path in TEXTS) > 150
    readme = CHECKOUT / "README.md"
    assert "reports/published/README.md#what-surprised-us-in-precision" in links(readme)
    assert "what-surprised-us-in-precision" in anchors(PUBLISHED / "README.md")
    assert "what-surprised-us-in-nothing" not in anchors(PUBLISHED / "README.md")


def programs(path: Path) -> Iterator[ast.Module]:
    """The blocks of Python on a page: those that say so, and indented ones that are."""
    for token in tokens(path):
        fenced = token.type == "fence" and token.info.strip() == "python"
        if fenced or (token.type == "code_block" and "depthgauge" in token.content):
            try:
                yield ast.parse(textwrap.dedent(token.content))
            except SyntaxError:  # a command, a printed table, or a part of an example
                assert not fenced or any(token.content in example for example in EXAMPLES), token.content


def named(node: ast.expr, scope: dict[str, Any]) -> Any:
    """The object that `a.b.c` means, as far as it is one of depthgauge's modules or in them; else None."""
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(owner := named(node.value, scope), ModuleType):
        return getattr(owner, node.attr)
    return None


def imports(program: ast.Module) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            for name in (name for name in node.names if name.name.split(".")[0] == "depthgauge"):
                module = importlib.import_module(name.name)
                scope[name.asname or "depthgauge"] = module if name.asname else importlib.import_module("depthgauge")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "depthgauge":
            owner = importlib.import_module(str(node.module))
            for name in node.names:
                scope[name.asname or name.name] = getattr(owner, name.name)
    return scope


def check(program: ast.Module) -> int:
    """Calls checked: raises where a name does not exist, or a function does not take what it is given."""
    scope, checked = imports(program), 0
    stored = {node.id for node in ast.walk(program) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    scope = {name: value for name, value in scope.items() if name not in stored}
    for node in ast.walk(program):
        if isinstance(node, ast.Attribute):
            named(node, scope)
        if isinstance(node, ast.Call) and callable(function := named(node.func, scope)):
            if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
                continue
            given = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **given)
            checked += 1
    return checked


def test_names_and_arguments_of_every_snippet_exist() -> None:
    checked = 0
    for path in TEXTS:
        for program in programs(path):
            try:
                checked += check(program)
            except (AttributeError, ImportError, TypeError) as error:
                raise AssertionError(f"{path.name}: {error}, in\n{ast.unparse(program)}") from error
    assert checked > 60


@pytest.mark.parametrize(
    "wrong",
    [
        "from depthgauge import probes",
        "from depthgauge import probe\nprobe.trace(model)",
        "from depthgauge import theory\ntheory.critical_sigma_w('tanh', sigma=1)",
    ],
)
def test_a_snippet_with_a_wrong_name_is_told(wrong: str) -> None:
    with pytest.raises((AttributeError, ImportError, TypeError)):
        check(ast.parse(wrong))


def commands(path: Path) -> Iterator[str]:
    """The command lines of depthgauge in code, without its name."""
    for token in (*tokens(path), *inline(path)):
        if token.type in {"fence", "code_block", "code_inline"}:
            for line in token.content.replace("\\\n", " ").splitlines():
                yield from COMMAND.findall(line)


def unknown(line: str) -> list[str]:
    """The options of a command line that its command does not have."""
    words = list(takewhile(lambda word: word not in {";", "|", "&", "&&", "||", ">", "#"}, split(line)))
    command: click.Command = main
    while words and (inner := getattr(command, "commands", {}).get(words[0])):
        command, words = inner, words[1:]
    has = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in words if word.startswith("--") and word.split("=")[0] not in {*has, "--help", "--"}]


def split(line: str) -> list[str]:
    return list(shlex.shlex(line, posix=True, punctuation_chars=True))


def test_options_of_every_command_exist() -> None:
    lines = [(path.name, line) for path in TEXTS if path.name != "CHANGELOG.md" for line in commands(path)]
    assert len(lines) > 60
    assert [(name, line) for name, line in lines if unknown(line)] == []
    assert unknown("bench ab 'x' 'y' --setup 'import torch' --sett 3") == ["--sett"]


def referenced() -> frozenset[str]:
    """The modules that the site's reference is made of."""
    return frozenset(re.findall(r"reference/(\w+)\.md", (CHECKOUT / "mkdocs.yml").read_text("utf-8"))) - {"depthgauge"}


def test_the_reference_has_every_module_that_a_snippet_imports() -> None:
    used = set()
    for program in (program for path in TEXTS for program in programs(path)):
        for node in ast.walk(program):
            if isinstance(node, ast.Import):
                used |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                used |= {f"{node.module}.{name.name}" for name in node.names}
    modules = {name.split(".")[1] for name in used if name.startswith("depthgauge.")} - {"studies"}
    modules = {name for name in modules if inspect.ismodule(getattr(depthgauge, name))}
    assert len(modules) > 15
    assert modules - referenced() == set()


def exists(module: ModuleType, name: str) -> bool:
    return hasattr(module, name) or (hasattr(module, "__path__") and find_spec(f"{module.__name__}.{name}") is not None)


def test_names_in_the_text_exist() -> None:
    """`stats.slopes`, a module of the reference and a name in it."""
    name = re.compile(rf"(?:depthgauge\.)?({'|'.join(sorted(referenced()))})\.([a-zA-Z]\w*)")
    found = [
        (path.name, *match.groups())
        for path in TEXTS
        if path.name != "CHANGELOG.md"
        for token in inline(path)
        if token.type == "code_inline" and (match := name.match(token.content))
    ]
    assert len(found) > 60
    assert [here for here in found if not exists(getattr(depthgauge, here[1]), here[2])] == []
    assert not exists(depthgauge.stats, "slope_of")


def test_every_page_of_the_guide_is_in_a_menu() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (CHECKOUT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    assert set(PAGES) - listed == set()


def test_the_glossary_is_that_of_the_reports() -> None:
    page: str = runpy.run_path(str(CHECKOUT / "docs" / "site" / "glossary.py"))["page"]()
    assert page.count("\n|") > 20
    written = (CHECKOUT / "docs" / "glossary.md").read_text("utf-8")
    assert written == page, "python docs/site/glossary.py writes it anew"


def test_the_kinds_of_a_check_are_those_of_its_questions() -> None:
    page: str = runpy.run_path(str(CHECKOUT / "docs" / "site" / "kinds.py"))["page"]()
    assert page.count("\n| `") > 7
    written = (CHECKOUT / "docs" / "check.md").read_text("utf-8")
    assert written == page, "python docs/site/kinds.py writes it anew"


def test_the_claims_are_those_of_the_studies_and_all_of_the_notes_have_a_row() -> None:
    page: str = runpy.run_path(str(CHECKOUT / "docs" / "site" / "claims.py"))["page"]()
    written = (CHECKOUT / "docs" / "claims.md").read_text("utf-8")
    assert written == page, "python docs/site/claims.py writes it anew"
    rows = dict.fromkeys(re.findall(r"^\| (N\d\d) \|", page, re.MULTILINE))
    assert [*rows] == [f"N{i:02d}" for i in range(1, 50)]
