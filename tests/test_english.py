"""Docstrings say what a name is: they begin with a verb or a noun phrase, not with a relative clause."""

import ast
from collections.abc import Iterator
from pathlib import Path

import depthgauge
import depthgauge.models
import depthgauge.reports
import depthgauge.studies

FOLDERS = [
    Path(package.__file__).parent for package in (depthgauge, depthgauge.models, depthgauge.reports, depthgauge.studies)
]
RIDDLES = frozenset(("As", "How", "Of", "Those", "What", "Whatever", "When", "Where", "Whether", "Which", "Who"))


def public(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module and of the public classes and functions in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from public(child, f"{name}.{child.name}")


def riddles(source: str, name: str) -> list[str]:
    texts = ((name, text.split()) for name, text in public(ast.parse(source), name))
    return [name for name, words in texts if words and words[0].rstrip(",:") in RIDDLES]


def test_a_riddle_is_found() -> None:
    source = 'class A:\n    """A thing."""\n\n    def b(self):\n        """Whether it is so."""\n'
    assert riddles(source, "m") == ["m.A.b"]


def test_docstrings_begin_with_a_verb_or_a_noun_phrase() -> None:
    files = {path for folder in FOLDERS for path in folder.rglob("*.py")}
    assert len(files) > 100
    assert [name for path in sorted(files) for name in riddles(path.read_text(encoding="utf-8"), str(path))] == []
