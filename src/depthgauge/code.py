"""The code behind a foreign study or model: its files, and the check that they are those imported.

    files = behind("nets", root)                        # the module, and what it imports from the same folder
    module = importing("nets", "nets", files_of, load)  # imports it; its digest is remembered
    at_import("nets")                                   # SHA-256 of what was imported, whatever is on the disk now

Rows carry the digest of the code that made them. So a digest is taken before and after the import, which must agree,
and again when more of the files are imported later: what runs is what was hashed, or nothing is stored. Other files
that the code reads are not covered.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import TypeVar

from depthgauge import environment

_Imported = TypeVar("_Imported")

Files = Mapping[str, Path]

_SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


class ChangedError(RuntimeError):
    """Code changed while it was imported, or since; the message is one sentence for the user."""


# -- which files -------------------------------------------------------------------------------------------------------


def behind(name: str, root: Path) -> dict[str, Path]:
    """Dotted name -> file of a module, of the packages it is in, and of all that these import below `root`."""
    files: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        parts = waiting.pop().split(".")
        for length in range(1, len(parts) + 1):
            dotted, base = ".".join(parts[:length]), root.joinpath(*parts[:length])
            path = next((p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file()), None)
            if path is not None and dotted not in files:
                files[dotted] = path
                package = dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]
                waiting += _imports(path.read_bytes(), package)
    return files


@lru_cache(maxsize=4096)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """List the names that a file imports or writes as `package.module:attribute`, of modules or in them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # it cannot be imported either
        return ()
    return tuple(name for node in ast.walk(tree) for name in _named(node, package))


def _named(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        try:
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
        except ImportError:  # it points above its package, and fails where it stands
            return
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _SPEC.fullmatch(node.value):
        yield node.value.partition(":")[0]


# -- what was imported -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """Record of an import: the files, and their digest at that time."""

    files: Files
    digest: str

    def unchanged(self) -> bool:
        try:
            return environment.digest(self.files) == self.digest
        except OSError:
            return False


_KNOWN: dict[str, _Known] = {}


def importing(what: str, module: str, files: Callable[[], Files], load: Callable[[], _Imported]) -> _Imported:
    """Import through `load`; the first time, remember the digest of the files.

    Args:
        what: its name or path.
        module: its name among the loaded modules.
        files: finds its files.
        load: imports it.

    Raises:
        ChangedError: a file changed meanwhile.
    """
    if what in _KNOWN and module in sys.modules:
        return load()
    there = files()
    known = _Known(there, environment.digest(there))
    loaded = load()
    if not known.unchanged():
        sys.modules.pop(module, None)
        raise ChangedError(f"{what} changed while it was imported: start again")
    _KNOWN[what] = known
    return loaded


def at_import(what: str) -> str | None:
    """SHA-256 of the files of what this process imported by that name; None where it has not."""
    return _KNOWN[what].digest if what in _KNOWN else None


def check_unchanged(what: str) -> None:
    """Check that the files on disk are those that were imported.

    Raises:
        ChangedError: it is not.
    """
    if what in _KNOWN and not _KNOWN[what].unchanged():
        raise ChangedError(
            f"{what} has changed since this process imported it: start a new one (in a notebook, restart the kernel)"
        )


def loaded_files() -> frozenset[str]:
    """The files behind what was imported whose modules are loaded by now."""
    ours = {str(path) for known in _KNOWN.values() for path in known.files.values()}
    if not ours:
        return frozenset()
    return frozenset(ours.intersection(str(getattr(module, "__file__", None)) for module in list(sys.modules.values())))


def line(error: BaseException, wrote: Callable[[str], bool] = lambda _: False) -> str:
    """The innermost line of an error in code that was imported so, `(in make, nets.py:12)`; empty where there is none.

    Args:
        error: with its traceback.
        wrote: whether a file counts besides.
    """
    files = loaded_files()
    frames = reversed(traceback.extract_tb(error.__traceback__))
    frame = next((frame for frame in frames if frame.filename in files or wrote(frame.filename)), None)
    return f"({place(frame.name, frame.filename, frame.lineno)})" if frame else ""


def place(name: str, file: str, line: int | str | None) -> str:
    """`in run, spectrum.py:12`."""
    return f"in {name}, {Path(file).name}:{line}"


def check_new(before: frozenset[str]) -> None:
    """Check that files loaded since `before` are unchanged since the rest of their code was imported.

    Raises:
        ChangedError: they are not.
    """
    new = loaded_files() - before
    for what, known in _KNOWN.items():
        if new.intersection(map(str, known.files.values())):
            check_unchanged(what)
