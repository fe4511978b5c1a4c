"""A model that a run is about: found by its spec, read for what it can vary, and put into a study's grids.

A spec is the name of a model, or `package.module:factory`, where the factory is anything that makes an `nn.Module`
when it is called: a function, a class. What a study varies is matched against the factory's parameters.

    target = resolve("my_project.nets:make")     # imports my_project.nets, from the current folder if need be
    target.takes("activation")                   # whether make has a parameter of that name
    restrict(study, "quick", target).grids       # the study's grids on that model, as far as it can vary them

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
from dataclasses import dataclass, replace
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from depthgauge import code, environment, preflight
from depthgauge.foreign import as_line, contained, describe_error
from depthgauge.isolation import beside_the_answer
from depthgauge.study import Case, Grid, Study

OFFERED = ("input_shape", "classes", "seed")  # what the data say of the model, and the seed of its weights
_NOTHING: Mapping[Case, str] = {}
_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
_UNNAMED = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class TargetError(ValueError):
    """There is no such model, or it cannot be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Input:
    """One example as a user describes it.

    Attributes:
        shape: of one example.
        tokens: how many there are, where examples are token ids; None where they are N(0, 1).
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
        """What `str` made."""
        shape, _, tokens = text.partition(" tokens below ")
        return Input(tuple(map(int, shape.split("x"))), int(tokens) if tokens else None)


@dataclass(frozen=True)
class Target:
    """A model that a run is restricted to.

    Attributes:
        spec: its name, or `package.module:factory`.
        parameters: what its factory can be given by name; None where that is anything (`**kwargs`).
        source: SHA-256 of the code of a model that is not depthgauge's own, else None.
        input: what the user says that it takes; None leaves that to the model and the study.
    """

    spec: str
    parameters: frozenset[str] | None
    source: str | None = None
    input: Input | None = None

    def takes(self, name: str) -> bool:
        """Whether the model can be built with a parameter of that name."""
        return self.parameters is None or name in self.parameters


# -- factories ---------------------------------------------------------------------------------------------------------


def is_factory(spec: str) -> bool:
    """Whether a spec is `package.module:factory`, not the name of a model; a file's path is meant for one."""
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
        raise TargetError(f"{spec!r} is no package.module:factory, such as my_project.nets:make")
    if name == "__main__":
        raise TargetError(f"{spec} is another module in every process: put the factory into a file of its own")
    module = _module(spec, name)
    try:
        factory: Any = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = difflib.get_close_matches(
            attribute, [one for one, thing in vars(module).items() if callable(thing)], n=1
        )
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"{name} ({getattr(module, '__file__', None)}) has no {attribute!r}{hint}") from None
    if hasattr(factory, "named_parameters") and not isinstance(factory, type):
        raise TargetError(f"{spec} is a module that is made already; name what makes it: its class, or a function")
    if not callable(factory):
        raise TargetError(f"{spec} is of type {type(factory).__name__}, which cannot be called to make a model")
    found: Callable[..., Any] = factory
    return found


def _module(spec: str, name: str) -> Any:
    here = _current_folder()
    try:
        with contained(), beside_the_answer():
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


def signature(spec: str) -> dict[str, inspect.Parameter]:
    """What the factory can be given, by name; `**kwargs` under its own name.

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


_ANY = inspect.Parameter.VAR_KEYWORD


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


# -- code --------------------------------------------------------------------------------------------------------------


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
    if root.name in _INSTALLED:
        distributions = importlib.metadata.packages_distributions().get(top, ())
        versions = [f"{distribution} {importlib.metadata.version(distribution)}" for distribution in distributions]
        return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()
    return code.at_import(name) or environment.digest(_files(spec))


_INSTALLED = {"site-packages", "dist-packages"}


def _files(spec: str) -> dict[str, Path]:
    name = spec.partition(":")[0]
    top = sys.modules.get(name.partition(".")[0])
    if top is not None and getattr(top, "__spec__", None) is None:
        return {}  # a module that a program made, not a file
    root = _root_of(spec)
    return {} if root.name in _INSTALLED else code.behind(name, root)


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
        found = find_spec(top)
    except ValueError:  # a module that a program made lies nowhere
        found = None
    if found is None:
        return None
    if found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations))).parent
    return Path(found.origin).parent if found.origin and found.has_location else None


def differences(fingerprint: Mapping[str, object]) -> tuple[str, ...]:
    """Whether the model of these rows is of other code here: `code of my_project.nets:make`, or nothing.

    Raises:
        TargetError: it cannot be found here.
    """
    spec = fingerprint.get("model")
    if not isinstance(spec, str) or not is_factory(spec):
        return ()
    return () if source(spec) == fingerprint.get("model_source") else (f"code of {spec}",)


# -- studies -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restricted:
    """What is left of a study on one model.

    Attributes:
        grids: those of the preset that can be run on it.
        not_applicable: claim id -> why it cannot be asked of this model.
        left_out: why grids, or values of theirs, are not run, one reason each.
        asked: ids of the claims that the grids answer.
    """

    grids: tuple[Grid, ...]
    not_applicable: Mapping[str, str]
    left_out: tuple[str, ...]
    asked: frozenset[str] = frozenset()

    def joined(self, further: Restricted) -> Restricted:
        """Both stages of a study; what either can ask is applicable."""
        asked = self.asked | further.asked
        reasons = {**further.not_applicable, **self.not_applicable}
        return Restricted(
            (*self.grids, *further.grids),
            {claim: why for claim, why in reasons.items() if claim not in asked},
            tuple(dict.fromkeys((*self.left_out, *further.left_out))),
            asked,
        )


def restrict(study: Study, preset: str, target: Target, refused: Mapping[Case, str] = _NOTHING) -> Restricted:
    """The study's grids with the target in the place of their parameter `model`, and without what it refuses.

    A pure function of its arguments. Where grids name the target, those alone are kept, so that the cases are among
    those of the unrestricted study; where none does, each is rewritten. A parameter of the architecture that the target
    lacks is left to the model (None) where the grid fixes it; where the grid varies it, the grid is not run.

    Args:
        study: the declaration.
        preset: which of its grids.
        target: the model.
        refused: what came of the preflight: smallest case -> why it does not run.
    """
    every = [claim.id for claim in study.claims]
    named = {claim for grid in study.presets[preset] for claim in grid.claims}
    rest = tuple(claim for claim in every if claim not in named)
    listed = any(target.spec in _models(grid) for grid in study.presets[preset])
    grids: list[Grid] = []
    asked: set[str] = set()  # claims
    reasons: list[tuple[str, tuple[str, ...]]] = []  # why a grid is not run, and what it would have answered
    seen: set[str] = set()  # cases
    for grid in study.presets[preset]:
        if why := _cannot(grid, target, listed=listed):
            reasons.append((why, grid.claims or rest))
            continue
        left = preflight.without(study, _rewritten(grid, target), target.spec, refused)
        reasons += [(why, grid.claims or rest) for why in left.why]
        if left.grid is None:
            continue
        asked |= {*(grid.claims or rest)}
        ids = {case.id for case in left.grid.cases()}
        if not ids <= seen:  # grids that differed in what the target lacks are one now
            grids.append(left.grid)
            seen |= ids
    return Restricted(
        tuple(grids),
        {
            claim: "; ".join(dict.fromkeys(why for why, claims in reasons if claim in claims))
            for claim in every
            if claim not in asked and any(claim in claims for _, claims in reasons)
        },
        tuple(dict.fromkeys(why for why, _ in reasons)),
        frozenset(asked),
    )


def _models(grid: Grid) -> tuple[object, ...]:
    return grid.varied.get("model", ()) or ((grid.fixed["model"],) if "model" in grid.fixed else ())


def _lacking(grid: Grid, target: Target) -> list[str]:
    return [name for name in grid.architecture if not target.takes(name)]


def _cannot(grid: Grid, target: Target, *, listed: bool) -> str:
    """Why a grid is not run on the target; empty where it is."""
    if not _models(grid):
        return "it is asked of networks of the study's own, in whose place no other model can stand"
    varied = [name for name in _lacking(grid, target) if len(grid.varied.get(name, ())) > 1]
    if varied:
        names = " or ".join(map(repr, varied))
        return f"{target.spec} has no parameter {names}, which would have to be varied"
    if listed and target.spec not in _models(grid):
        return f"the study asks it of other models than {target.spec}"
    if target.input and not grid.any_input:
        return f"it is asked on data of the study's own, which {target.input.source} cannot replace"
    return ""


def _rewritten(grid: Grid, target: Target) -> Grid:
    varied = {name: (target.spec,) if name == "model" else values for name, values in grid.varied.items()}
    fixed = {name: target.spec if name == "model" else value for name, value in grid.fixed.items()}
    for name in _lacking(grid, target):
        if name in varied:
            varied[name] = (None,)
        else:
            fixed[name] = None
    if target.input:
        fixed["input"] = str(target.input)
    return replace(grid, varied=varied, fixed=fixed)
