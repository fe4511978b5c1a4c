"""Models that a user names: found by their spec, and read for their parameters.

A spec is the name of a model, or `package.module:factory`, where the factory is anything that makes an `nn.Module`
when it is called: a function, a class. What a study varies is matched against the factory's parameters.

    target = resolve("my_project.nets:make")     # imports my_project.nets, from the current folder if need be
    target.takes("activation")                   # whether make has a parameter of that name

`input_shape`, `classes` and `seed` are offered to every factory; one without them is taken as it is. Everything else
must have a default.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from depthgauge import code, environment, modules
from depthgauge.foreign import as_line, contained, describe_error
from depthgauge.isolation import stdout_to_stderr

OFFERED = ("input_shape", "classes", "seed")  # what the data say of the model, and the seed of its weights
_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
_ANY = inspect.Parameter.VAR_KEYWORD
_UNNAMED = {inspect.Parameter.VAR_POSITIONAL, _ANY}


class TargetError(ValueError):
    """Missing or unbuildable model; the message is one sentence for the user."""


@dataclass(frozen=True)
class Input:
    """One example as a user describes it.

    Attributes:
        shape: shape of one example.
        tokens: number of tokens, where examples are token ids; None where they are N(0, 1).
    """

    shape: tuple[int, ...]
    tokens: int | None = None

    def __str__(self) -> str:
        """`3x32x32`, `40 tokens below 500`."""
        shape = "x".join(map(str, self.shape))
        return shape if self.tokens is None else f"{shape} tokens below {self.tokens}"

    @property
    def source(self) -> str:
        """The option that says it."""
        return "--input-shape" if self.tokens is None else "--tokens"

    @property
    def options(self) -> tuple[str, ...]:
        """The words of a command line that say it."""
        shape = ("--input-shape", ",".join(map(str, self.shape)))
        return shape if self.tokens is None else (*shape, "--tokens", str(self.tokens))

    @staticmethod
    def parse(text: str) -> Input:
        """Parse the text that `str` made."""
        shape, _, tokens = text.partition(" tokens below ")
        return Input(tuple(map(int, shape.split("x"))), int(tokens) if tokens else None)


@dataclass(frozen=True)
class Target:
    """A model that a run is restricted to.

    Attributes:
        spec: its name, or `package.module:factory`.
        parameters: the factory's parameters; None where it takes any (`**kwargs`).
        source: SHA-256 of the code of a model that is not depthgauge's own, else None.
        input: inputs that the user describes; None leaves them to the model and the study.
    """

    spec: str
    parameters: frozenset[str] | None
    source: str | None = None
    input: Input | None = None

    def takes(self, name: str) -> bool:
        """Tell whether the model can be built with a parameter of that name."""
        return self.parameters is None or name in self.parameters


def is_factory(spec: str) -> bool:
    """Tell whether a spec is `package.module:factory` and not a model's name; a file's path counts as a factory's."""
    return ":" in spec or spec.endswith(".py")


def load(spec: str) -> Callable[..., Any]:
    """The factory `package.module:factory`; its module is imported, from the current folder if nowhere else.

    Raises:
        TargetError: the module cannot be imported, or has nothing of that name that can be called.
    """
    name, _, attribute = spec.partition(":")
    if name.endswith(".py"):
        path = Path(name)
        module = path.stem if path.is_absolute() or ".." in path.parts else ".".join(path.with_suffix("").parts)
        raise TargetError(f"{spec} names a file, where the module is wanted: {module}:{attribute or 'factory'}")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise TargetError(f"{spec!r} is not a package.module:factory, such as my_project.nets:make")
    if name == "__main__":
        raise TargetError(f"{spec} is a different module in every process: put the factory into a file of its own")
    module = _module(spec, name)
    try:
        factory: Any = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(
            attribute, [attribute_name for attribute_name, thing in vars(module).items() if callable(thing)], n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"{name} ({getattr(module, '__file__', None)}) has no {attribute!r}{hint}") from None
    if hasattr(factory, "named_parameters") and not isinstance(factory, type):
        raise TargetError(f"{spec} is a module instance; name its class, or a function that makes it")
    if not callable(factory) and all(hasattr(factory, part) for part in ("model", "batches")):
        raise TargetError(f"{spec} is a training itself; name a function that makes and returns it")
    if not callable(factory):
        raise TargetError(f"{spec} is of type {type(factory).__name__}, which cannot be called to make a model")
    loaded: Callable[..., Any] = factory
    return loaded


def _module(spec: str, name: str) -> Any:
    here = _current_folder()
    try:
        with contained(), stdout_to_stderr():
            return code.importing(name, name, lambda: _files(spec), lambda: importlib.import_module(name))
    except code.ChangedError as error:
        raise TargetError(str(error)) from error
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"there is no module {error.name!r} for {spec}, neither installed nor in {here}"
            ) from None
        raise TargetError(f"{name} cannot be imported: {as_line(error)}") from error
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(f"{name} cannot be imported: {describe_error(error)}") from error


def _current_folder() -> str:
    """Makes it importable: last, so that a user's `models` shadows nothing that was importable before."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise TargetError("the current folder is no longer there; change to one that is") from None
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # a file may be younger than the last look into its folder
    return here


def line(error: BaseException) -> str:
    """The innermost line of a factory's own code in an error, `(in make, nets.py:12)`; empty where there is none."""
    return code.line(error)


def signature(spec: str) -> dict[str, inspect.Parameter]:
    """Return the factory's parameters by name, `**kwargs` under its own name.

    Raises:
        TargetError: as `load`; it has no signature, or must be given something that is not offered.
    """
    try:
        parameters = inspect.signature(load(spec)).parameters
    except (TypeError, ValueError) as error:
        if isinstance(error, TargetError):
            raise
        raise TargetError(f"{spec} has no signature that could be read") from error
    for name, parameter in parameters.items():
        offered = name in OFFERED and parameter.kind in _BY_NAME
        if parameter.default is parameter.empty and parameter.kind not in _UNNAMED and not offered:
            raise TargetError(
                f"{spec} cannot be called without {name!r}: give it a default, or name a function that does"
            )
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in {*_BY_NAME, _ANY}}


def resolve(spec: str) -> Target:
    """The target `package.module:factory`.

    Raises:
        TargetError: as `signature`; its code has changed since this process imported it.
    """
    parameters = signature(spec)
    try:
        code.check_unchanged(spec.partition(":")[0])
    except code.ChangedError as error:
        raise TargetError(str(error)) from error
    anything = any(parameter.kind is _ANY for parameter in parameters.values())
    return Target(spec, None if anything else frozenset(parameters), source(spec))


def source(spec: str) -> str:
    """SHA-256 of the code behind a spec: its module, and what that imports from the same folder, directly or not.

    It is that of the code which this process has imported; where it has not, of the code that is there now. Of an
    installed distribution it is the name and the version. Other files that the code reads are not covered.

    Raises:
        TargetError: there is no such module here.
    """
    name = spec.partition(":")[0]
    top = name.partition(".")[0]
    root = _root_of(spec)
    if root.name in modules.INSTALLED:
        distributions = importlib.metadata.packages_distributions().get(top, ())
        versions = [f"{distribution} {importlib.metadata.version(distribution)}" for distribution in distributions]
        return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()
    return code.at_import(name) or environment.digest(_files(spec))


def _files(spec: str) -> dict[str, Path]:
    name = spec.partition(":")[0]
    top = sys.modules.get(name.partition(".")[0])
    if top is not None and getattr(top, "__spec__", None) is None:
        return {}  # a module that a program made, not a file
    root = _root_of(spec)
    return {} if root.name in modules.INSTALLED else code.behind(name, root)


def _root_of(spec: str) -> Path:
    here = _current_folder()
    top = spec.partition(":")[0].partition(".")[0]
    root = _root(top)
    if root is None:
        raise TargetError(f"there is no module {top!r} for {spec}, neither installed nor in {here}")
    return root


def _root(top: str) -> Path | None:
    """The folder in which a top-level module or package lies."""
    try:
        spec = find_spec(top)
    except ValueError:  # a module that a program made lies nowhere
        spec = None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin and spec.has_location else None


def differences(fingerprint: Mapping[str, object]) -> tuple[str, ...]:
    """Compare the model's code in a fingerprint with the code here: `code of my_project.nets:make`, or nothing.

    Raises:
        TargetError: it cannot be found here.
    """
    spec = fingerprint.get("model")
    if not isinstance(spec, str) or not is_factory(spec):
        return ()
    return () if source(spec) == fingerprint.get("model_source") else (f"code of {spec}",)
