"""The origin of a study's code: the module that declares it, and the author's line in an error.

    declaration(study)              # the module or file whose STUDY it is, for another process to load
    describe(study, error)          # 'ValueError: no luck (in run, spectrum.py:12)'

The author's line is the innermost one in the folder that holds the study's file, or its whole package, with what they
import from beside them, or in the code of a user's model; torch's, pandas' and depthgauge's own lines are passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from depthgauge import code, environment, hashing, modules
from depthgauge.discovery import Found
from depthgauge.foreign import describe_error, original
from depthgauge.study import Study, StudyError

# -- the declaration ---------------------------------------------------------------------------------------------------


def declaration(study: Study) -> Found | None:
    """The module or file whose `STUDY` this is, if another process can load it from there."""
    for name, module in _declaring(study):
        if module.__dict__["STUDY"] is study and name not in {"__main__", "__mp_main__"}:
            file = getattr(module, "__file__", None)
            if file is None:
                return None
            path = Path(file).resolve()
            with contextlib.suppress(ImportError, ValueError):
                if find_spec(name) is not None and not name.startswith("depthgauge_study_"):
                    return Found(study.name, name, path)
            return Found(study.name, str(path), path)
    return None


def digest(study: Study) -> str:
    """SHA-256 of the code of a study that is in no module: of its files where it is a script's, and as it is in memory.

    Raises:
        UnreadableError: it is in no file, and names what cannot be told from another.
    """
    files = _script(study)
    try:
        memory = hashing.digest(study.run, study.second)
    except hashing.UnreadableError:
        if not files:
            raise
        memory = ""
    return hashlib.sha256(f"{environment.digest(files) if files else ''} {memory}".encode()).hexdigest()


def _script(study: Study) -> dict[str, Path]:
    """The files behind `run` and `second`; none where one of them is in no file, as in a notebook."""
    files: dict[str, Path] = {}
    for do in filter(None, (study.run, study.second)):
        function = _function(do)
        path = Path(getattr(getattr(function, "__code__", None), "co_filename", ""))
        if path.suffix != ".py" or not path.is_file() or hashing.installed(getattr(function, "__module__", None)):
            return {}
        files |= {**code.behind(path.stem, path.parent), path.stem: path}
    return files


def _function(do: object) -> object:
    """The function that is called in the end: in a partial, of a method or of an object."""
    while isinstance(do, partial):
        do = do.func
    do = inspect.unwrap(do) if callable(do) else do
    do = getattr(do, "__func__", do)
    return do if hasattr(do, "__code__") else type(do).__call__


def _declaring(study: Study) -> Iterator[tuple[str, ModuleType]]:
    """Modules whose `STUDY` it is, or was before its grids were restricted to a model."""
    for name, module in list(sys.modules.items()):
        declared = getattr(module, "__dict__", {}).get("STUDY")
        if isinstance(declared, Study) and (declared.name, declared.run) == (study.name, study.run):
            yield name, module


# -- the author's line -------------------------------------------------------------------------------------------------


def describe(study: Study, error: BaseException) -> str:
    """Describe an error of a study's code in one line, with the author's line where the traceback has one."""
    return f"{describe_error(error)} {line(study, error)}".rstrip()


def line(study: Study, error: BaseException) -> str:
    """Return the author's line in a traceback, `(in run, spectrum.py:12)`; empty where it has none."""
    error = original(error)
    if isinstance(error, StudyError):  # depthgauge says itself what is wrong
        return ""
    return code.line(error, author(study))


def author(study: Study | str) -> Callable[[str], bool]:
    """Return a test of whether a file, by its path in a traceback, is the study author's.

    Args:
        study: the study, or its origin: a module's dotted name, or a file's path.
    """
    files = _files(study)
    homes = {_home(file) for file in files}
    ours = _ours()

    def wrote(name: str) -> bool:
        file = Path(name)
        below = [file.relative_to(home) for home in homes if file.is_relative_to(home)]
        return any(not modules.is_installed(inside) for inside in below) and not any(
            file.is_relative_to(folder) and not any(home.is_relative_to(folder) for home in homes) for folder in ours
        )

    return wrote


def _files(study: Study | str) -> tuple[Path, ...]:
    """The files that declare a study; those of its functions where it is in no module."""
    if isinstance(study, str):
        if study.endswith(".py"):
            return (Path(study),)
        module = modules.find(study)
        return (module.file,) if module is not None and module.file is not None else ()
    declared = [str(module.__file__) for _, module in _declaring(study) if getattr(module, "__file__", None)]
    functions = (getattr(do, "__code__", None) for do in (study.run, study.analyse, study.plot, study.second))
    return tuple(map(Path, declared or {function.co_filename for function in functions if function}))


def _home(file: Path) -> Path:
    """The folder in which a file, or the outermost package that it is in, lies; less, where others' code lies there."""
    shared = _folders("depthgauge.studies")
    top = file
    while (top.parent / "__init__.py").is_file() and top.parent not in shared:
        top = top.parent
    return top if top.parent in shared or top.parent.name in modules.INSTALLED else top.parent


def _ours() -> tuple[Path, ...]:
    """The folders of Python's own modules, and of depthgauge's but for its studies."""
    packages = ("depthgauge", "depthgauge.models", "depthgauge.reports")
    return (*(folder for name in packages for folder in _folders(name)), Path(sysconfig.get_path("stdlib")))


def _folders(package: str) -> tuple[Path, ...]:
    spec = find_spec(package)
    return tuple(map(Path, (spec and spec.submodule_search_locations) or ()))
