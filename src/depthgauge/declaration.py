"""Reading a study's declaration from its file's syntax tree: nothing is imported, nothing is run."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from depthgauge.verdict import Claim


class Names(dict[str, ast.expr]):
    """Assignments of a module, by name.

    Attributes:
        path: the module's file.
    """

    def __init__(self, path: Path, assigned: Iterable[tuple[str, ast.expr]] = ()) -> None:
        super().__init__(assigned)
        self.path = path

    def beside(self, module: str) -> Names:
        """Assignments of the module in the file beside this one; none where there is no such file that can be read."""
        path = self.path.with_name(f"{module}.py")
        with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            return _assignments(path.read_bytes(), path)
        return Names(path)


@dataclass(frozen=True)
class Declaration:
    """A study's declaration as its file spells it; a field that the file computes is empty.

    Attributes:
        name: the study's.
        question: the study's question.
        claims: the claims that it answers, each with its topic.
        presets: their names.
        topic: the question of a report that it belongs to.
    """

    name: str
    question: str
    claims: tuple[Claim, ...]
    presets: tuple[str, ...]
    topic: str = ""


def read(path: Path) -> Declaration | None:
    """Read the declaration that the file at `path` assigns to `STUDY`; None where there is none.

    Raises:
        OSError: the file cannot be read.
        SyntaxError, ValueError, RecursionError, MemoryError: it is no Python; the last two where it is nested deep.
    """
    names = _assignments(path.read_bytes(), path)
    call = names.get("STUDY")
    if call is None:
        return None
    given = _call_arguments(call, ("name", "question", "parts"))
    parts = [part for node in _elements(given.get("parts"), names) for part in _parts(node, names)]
    if parts:
        claims = tuple({claim.id: claim for part in parts for claim in part.claims}.values())
        presets = parts[0].sizes
    else:
        claims, presets = _claims(given.get("claims"), names), _keys(given.get("presets"), names)
    name, question, topic = (_text(given.get(field), names) for field in ("name", "question", "topic"))
    claims = tuple(replace(claim, topic=claim.topic or topic) for claim in claims)
    return Declaration(name, question, claims, presets, topic)


@lru_cache(maxsize=512)  # a command asks several times what studies there are; by content, since files change
def _assignments(source: bytes, path: Path) -> Names:
    return Names(path, (each for statement in ast.parse(source, str(path)).body for each in _assigned(statement)))


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        yield statement.target.id, statement.value


@dataclass(frozen=True)
class _Part:
    """The declaration of a part, read from its file (`depthgauge.parts.Part`)."""

    claims: tuple[Claim, ...]
    sizes: tuple[str, ...]


def _parts(node: ast.expr, names: Names) -> Iterator[_Part]:
    """The part that an expression stands for: `signal.PART`, of the file beside this one, or one declared in it."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        names = names.beside(node.value.id)
        node = names.get(node.attr, node)
    call = _follow(node, names)
    given = _call_arguments(call, ("name", "claims", "sizes")) if isinstance(call, ast.Call) else {}
    if "claims" in given and "sizes" in given:
        sizes = tuple(size for size in _keys(given["sizes"], names) if size != "tiny")
        topic = _text(given.get("topic"), names)
        claims = tuple(replace(claim, topic=claim.topic or topic) for claim in _claims(given["claims"], names))
        yield _Part(claims, sizes)


def _call_arguments(call: ast.expr | None, order: Sequence[str]) -> dict[str, ast.expr]:
    """The arguments of a call by name; `order` names those that stand in their place."""
    if not isinstance(call, ast.Call):
        return {}
    placed = dict(zip(order, call.args, strict=False))
    return {**placed, **{word.arg: word.value for word in call.keywords if word.arg}}


def _elements(node: ast.expr | None, names: Names) -> Sequence[ast.expr]:
    node = _follow(node, names)
    return node.elts if isinstance(node, ast.Tuple | ast.List) else ()


def _keys(node: ast.expr | None, names: Names) -> tuple[str, ...]:
    """The keys of a dictionary, or of a call's keywords, of which all are constants."""
    node = _follow(node, names)
    if isinstance(node, ast.Call):
        return tuple(word.arg for word in node.keywords if word.arg)
    keys = [key.value if isinstance(key, ast.Constant) else None for key in getattr(node, "keys", ())]
    return tuple(map(str, keys)) if None not in keys else ()


def _claims(node: ast.expr | None, names: Names) -> tuple[Claim, ...]:
    claims = _constant(node, names)
    return tuple(item for item in claims if isinstance(item, Claim)) if isinstance(claims, tuple) else ()


def _text(node: ast.expr | None, names: Names) -> str:
    value = _constant(node, names)
    return value if isinstance(value, str) else ""


def _constant(node: ast.expr | None, names: Names) -> object:
    """The value of an expression of constants; None where it is more than that."""
    try:
        return None if node is None else _literal(node, names)
    except (KeyError, ValueError, TypeError):
        return None


def _follow(node: ast.expr | None, names: Names) -> ast.expr | None:
    for _ in names:
        if not isinstance(node, ast.Name):
            break
        node = names.get(node.id)
    return node


def _assigned_to(node: ast.Name | ast.Attribute, names: Names) -> tuple[ast.expr, Names] | None:
    """What a name, or `beside.NAME`, stands for, and where; None where nothing says so."""
    if isinstance(node, ast.Name):
        name = node.id
    else:
        assert isinstance(node.value, ast.Name)
        name, names = node.attr, names.beside(node.value.id)
    return (names[name], names) if name in names else None


def _literal(node: ast.expr, names: Names, depth: int = 0) -> object:
    """The value of an expression of constants, tuples, sums, module constants and `Claim(...)`; nothing is run.

    A module's constants are its own, and `beside.NAME` of the files beside it.

    Raises:
        ValueError: it is more than that.
    """
    if depth > 50:
        raise ValueError("a constant that refers to itself")

    def value(inner: ast.expr) -> object:
        return _literal(inner, names, depth + 1)

    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute(value=ast.Name()) if found := _assigned_to(node, names):
            return _literal(*found, depth + 1)
        case ast.Tuple() | ast.List():
            items: list[object] = []
            for element in node.elts:
                inner = value(element.value if isinstance(element, ast.Starred) else element)
                items.extend(inner if isinstance(element, ast.Starred) and isinstance(inner, tuple) else (inner,))
            return tuple(items)
        case ast.BinOp(op=ast.Add()):
            left, right = value(node.left), value(node.right)
            if isinstance(left, str) and isinstance(right, str):
                return left + right
            if isinstance(left, tuple) and isinstance(right, tuple):
                return left + right
        case ast.Call(func=ast.Name(id="Claim") | ast.Attribute(attr="Claim")):
            fields = {word.arg: value(word.value) for word in node.keywords if word.arg}
            fields |= dict(zip(("id", "text", "topic"), (value(argument) for argument in node.args), strict=False))
            return Claim(str(fields["id"]), str(fields["text"]), str(fields.get("topic", "")))
    raise ValueError("not a constant")
