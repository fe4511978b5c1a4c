"""Functions by name: how another process finds them."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from depthgauge.foreign import describe_error

_AGAIN = "__depthgauge_rank__"  # the name of a script's module in another process, so that its main block does not run


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
        found(function)
        return function
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
        if found(name) is not function:
            raise ParallelError(f"{name} is another object than the one given: name it by where it stands")
        return name
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name:
        return f"{spec.name}:{attribute}"
    if path is None or not Path(path).is_file():
        raise ParallelError(f"{attribute} was typed in, where another process cannot find it: put it into a file")
    return f"{Path(path).resolve()}:{attribute}"


def found(name: str) -> Callable[..., Any]:
    """The function of that name; its module is imported, or its script read without its main block.

    Raises:
        ParallelError: there is none.
    """
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            values: Any = runpy.run_path(place, run_name=_AGAIN)
            first, *rest = attribute.split(".")
            thing = reduce(getattr, rest, values[first])
        else:
            thing = reduce(getattr, attribute.split("."), importlib.import_module(place))
    except (Exception, SystemExit) as error:
        raise ParallelError(f"{name} cannot be loaded: {describe_error(error)}") from error
    if not callable(thing):
        raise ParallelError(f"{name} is a {type(thing).__name__}, which cannot be called")
    function: Callable[..., Any] = thing
    return function
