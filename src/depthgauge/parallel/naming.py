"""Functions by name: how another process finds them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from depthgauge.foreign import describe_error

AGAIN = "__depthgauge_rank__"  # the name of a script's module in another process, so that its main block does not run


class ParallelError(ValueError):
    """A computation that cannot be spread over ranks; the message is one sentence for the user."""


def named(function: Callable[..., Any] | str) -> str:
    """The name by which another process finds a function: `package.module:function`, or `/path/script.py:function`.

    Raises:
        ParallelError: it has none, such as a lambda, a nested function, or one typed into a notebook.
    """
    if isinstance(function, str):
        place, _, attribute = function.rpartition(":")
        if not place or not attribute:
            raise ParallelError(f"{function!r} is not a package.module:function, such as my_project.training:setup")
        thing = found(function)
        return function if place != "__main__" else named(thing)
    if not callable(function):
        raise ParallelError(f"a function was expected, or its name package.module:function, not {function!r:.80}")
    module, attribute = (str(getattr(function, name, None) or "") for name in ("__module__", "__qualname__"))
    if not module or not attribute or "<" in attribute:
        raise ParallelError(
            f"{attribute or function!r} cannot be found by name in another process: define it with def, at the top"
            " level of a file"
        )
    if module != "__main__":
        name = f"{module}:{attribute}"
        if found(name) != function:
            raise ParallelError(f"{name} is another object than the one given: name it by where it stands")
        file = getattr(sys.modules[module], "__file__", None)
        if file and file.endswith(".py") and not _importable(module.partition(".")[0]):
            return f"{Path(file).resolve()}:{attribute}"  # a test's module, say, which no path leads to
        return name
    main = sys.modules["__main__"]
    if hasattr(function, "__self__") and not isinstance(function.__self__, type):
        raise ParallelError(
            f"{attribute} is a method of an object, which another process does not have: give a function"
        )
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name:
        return f"{spec.name}:{attribute}"
    if path is None or not Path(path).is_file():
        raise ParallelError(f"{attribute} was typed in, where another process cannot find it: put it into a file")
    sys.modules.setdefault(AGAIN, main)  # by which objects of its classes come back from ranks
    return f"{Path(path).resolve()}:{attribute}"


def _importable(name: str) -> bool:
    """Tell whether an import would find a top-level module that is loaded already, as another process must."""
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(name, None) is not None for find in finders if find is not None)


def found(name: str) -> Callable[..., Any]:
    """The function of that name; its module is imported, or its script read without its main block.

    Raises:
        ParallelError: there is none.
    """
    place, _, attribute = name.rpartition(":")
    try:
        with _reading():
            module = _script(place) if place.endswith(".py") else importlib.import_module(place)
        thing = reduce(getattr, attribute.split("."), module)
    except (Exception, SystemExit) as error:
        raise ParallelError(f"{name} cannot be loaded: {describe_error(error)}") from error
    if not callable(thing):
        raise ParallelError(f"{name} is a {type(thing).__name__}, which cannot be called")
    function: Callable[..., Any] = thing
    return function


_read: list[str] = []  # what is being read


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    _read.append("")
    try:
        yield
    finally:
        _read.pop()


def check_read() -> None:
    """Check that no module is being read for a function of it: if it starts ranks then, they would read it again.

    Raises:
        ParallelError: one is.
    """
    if _read:
        raise ParallelError(
            "it starts ranks when it is read, and each rank reads it again: put what it runs under"
            ' if __name__ == "__main__":'
        )


def _script(path: str) -> ModuleType:
    """The module of a script, read once, without its main block; its classes are found by name."""
    known = sys.modules.get(AGAIN)
    if known is not None and str(Path(known.__file__ or "").resolve()) == path:
        return known
    spec = importlib.util.spec_from_file_location(AGAIN, path)
    assert spec is not None, "a path that ends with .py has a loader"
    assert spec.loader is not None
    module = sys.modules[AGAIN] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[AGAIN]
        raise
    return module
