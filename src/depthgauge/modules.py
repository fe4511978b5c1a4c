"""Modules: found without an import of what they are in, or loaded from a file by its path.

    find("my_project.studies.walk").file                   # /home/me/my_project/studies/walk.py
    package_of(Path("/home/me/my_project/studies"))        # /home/me, 'my_project.studies'
    load_file(Path("/home/me/walk.py"))                    # the module

`importlib.util.find_spec` imports what a name is in: that may raise, print, or take a minute.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NoReturn

INSTALLED = frozenset(("site-packages", "dist-packages"))
"""Names of folders that hold everybody's packages."""


@dataclass(frozen=True)
class Module:
    """Place of a module.

    Attributes:
        file: its file; None where it has none, as a package that is a folder alone.
        folders: those in which a package has its modules; none for what is no package.
    """

    file: Path | None
    folders: tuple[Path, ...]


def find(name: str) -> Module | None:
    """The module of that dotted name; None where there is none."""
    module: Module | None = None
    package = ""
    for part in name.split("."):
        dotted = f"{package}.{part}" if package else part
        spec = _spec(dotted, part, module)
        if spec is None:
            return None
        file = Path(spec.origin) if spec.origin and spec.has_location else None
        module = Module(file, tuple(map(Path, spec.submodule_search_locations or ())))
        package = dotted
    return module


def find_below(root: Path, name: str) -> Module | None:
    """The module of that dotted name in a folder, which becomes importable where it has it; None where it has not."""
    file = root.joinpath(*name.split("."))
    there = any(os.path.isfile(each) for each in (f"{file}.py", file / "__init__.py"))  # noqa: PTH113 - any name may come
    if not root.is_absolute() or not there:
        return None
    importable(root)
    return find(name)


def _spec(dotted: str, part: str, package: Module | None) -> ModuleSpec | None:
    """A module's spec; below a package that is not loaded, one that says where it lies and not how it is called."""
    try:
        if package is None or dotted.rpartition(".")[0] in sys.modules:
            return find_spec(dotted)
        return PathFinder.find_spec(part, [*map(str, package.folders)]) if part else None
    except (ImportError, ValueError):
        return None


def is_installed(path: Path) -> bool:
    """Tell whether a file lies in an installed package."""
    return not INSTALLED.isdisjoint(path.parts)


def package_of(folder: Path) -> tuple[Path, str]:
    """The folder from which a package is imported, and its dotted name, after all packages that it lies in."""
    names, root = [folder.name], folder.parent
    while root.name.isidentifier() and (root / "__init__.py").is_file():
        names.append(root.name)
        root = root.parent
    return root, ".".join(reversed(names))


def load_file(path: Path) -> object:
    """The module of a file, imported once; its folder becomes importable.

    Raises:
        ImportError: it is no Python file; its code may raise anything else.
    """
    name = name_of_file(path)
    if name in sys.modules:
        return sys.modules[name]
    importable(path.parent)
    spec = spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def name_of_file(path: Path) -> str:
    """The name of a file's module: one, however often it is asked for; a digest keeps namesakes elsewhere apart."""
    return f"depthgauge_study_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


class _Loader(SourceFileLoader):
    """Compiles what stands in the file: cached byte code may be of a file of the same second and size."""

    def path_stats(self, path: str) -> NoReturn:
        raise OSError(f"{path} is read anew")


def importable(folder: Path) -> None:
    """Put a folder last on the path, so that a user's `models` shadows nothing that was importable before."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
