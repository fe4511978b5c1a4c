"""Discovery of studies: every file with a module-level `STUDY` in a place of studies.

Looking reads the files and imports nothing, so that a listing is fast and a broken study spoils no other:

    for found in discover():
        print(found.name, found.question)
    study = find("gradient_flow").load()

Studies of your own come from a file, a folder or an importable package (`sources`, the option `--studies`), or from
an installed distribution with an entry point in the group `depthgauge.studies` that names a package or module. An entry
point that brings none costs a line on stderr, once a process, and nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from depthgauge import code, declaration, environment, modules, topics
from depthgauge.foreign import as_line, contained, describe_error
from depthgauge.isolation import same_folder, stdout_to_stderr
from depthgauge.study import Study, StudyError
from depthgauge.verdict import Claim

GROUP = "depthgauge.studies"


class UnknownStudyError(LookupError):
    """Unknown study, or unknown source of studies; the message lists the known ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownPresetError(ValueError):
    """Unknown preset of a study; the message names the nearest."""


@dataclass(frozen=True)
class Found:
    """A study as its file tells it, without running the file.

    Attributes:
        name: the study's name.
        origin: the origin to load it from: a module's dotted name, or the absolute path of a file.
        path: its file.
        question: empty where the file computes it.
        claims: the claims as the file spells them; empty where the file computes them.
        presets: names of its presets; empty where the file computes them.
        problem: why the file cannot be read as Python; empty where it can.
        topic: the question of a report that it belongs to; empty where it has one of its own.
        brought: the entry point of an installed distribution that brings it, in words; empty where none does.
    """

    name: str
    origin: str
    path: Path
    question: str = ""
    claims: tuple[Claim, ...] = ()
    presets: tuple[str, ...] = ()
    problem: str = ""
    topic: str = ""
    brought: str = ""

    @property
    def foreign(self) -> bool:
        """Tell whether the study is not one of depthgauge's."""
        return foreign(self.origin)

    def load(self) -> Study:
        """The study itself; its module is imported.

        Raises:
            StudyError: the module cannot be imported, its `STUDY` is no study, or its code has changed since this
                process imported it.
        """
        if self.problem:
            raise StudyError(self.problem)
        study = load(self.origin, self.name)
        try:
            code.check_unchanged(self.origin)
        except code.ChangedError as error:
            raise StudyError(str(error)) from error
        return study

    def source(self) -> str | None:
        """SHA-256 of the code of a study that is not depthgauge's own, as it was imported: see `source`."""
        return source(self.origin) if self.foreign else None


def foreign(origin: str) -> bool:
    """Tell whether the studies of an origin are not depthgauge's."""
    return not origin.startswith("depthgauge.studies.")


def place(origin: str) -> str:
    """The path of an origin, for a process that starts in another folder: that of its file or innermost package.

    What depthgauge or an installed distribution brings keeps its dotted name; so does what lies in a folder that is a
    package without an `__init__.py`, whose name its path does not tell: `root` tells where it is.
    """
    module = None if origin.endswith(".py") or not foreign(origin) else modules.find(origin)
    if module is None or module.file is None:
        return origin
    path = module.file.resolve()
    if _root(module.file, origin).name in modules.INSTALLED:
        return origin
    package = origin if path.name == "__init__.py" else origin.rpartition(".")[0]
    if not package:
        return str(path)
    _, told = modules.package_of(path.parent)
    return str(path.parent) if f".{told}".endswith(f".{package}") else origin


def root(origin: str) -> str | None:
    """The folder from which an origin is imported whose `place` is a name of the user's own; None of any other."""
    module = None if origin.endswith(".py") or not foreign(origin) else modules.find(origin)
    if module is None or module.file is None or place(origin) != origin:
        return None
    folder = _root(module.file, origin).absolute()
    return None if folder.name in modules.INSTALLED else str(folder)


def _root(path: Path, module: str) -> Path:
    """The folder from which a module with that file is imported."""
    return path.parents[module.count(".") + (path.name == "__init__.py")]


def source(origin: str) -> str:
    """SHA-256 of a study's code: its file, what that imports from the same folder, and all files of its package.

    It is that of the code which this process has imported; where it has not, of the code that is there now.
    """
    return code.at_import(origin) or environment.digest(_files(origin))


def _files(origin: str) -> dict[str, Path]:
    if origin.endswith(".py"):
        path = Path(origin)
        module, root = path.stem, path.parent
        if path.name == "__init__.py":
            module, root = root.name, root.parent
    else:
        there = modules.find(origin)
        if there is None or there.file is None:
            return {}
        module, path = origin, there.file
        root = _root(path, module)
    if root.name in modules.INSTALLED:  # which holds everybody's
        near = (path,) if path.parent == root else path.parent.rglob("*.py")
        return {str(each.relative_to(root)): each for each in near}
    files = code.behind(module, root)
    alone = path.parent == root  # no part of a package
    whole = () if alone else path.parent.rglob("*.py")
    return {**files, **{str(each.relative_to(root)): each for each in whole}, module: path}


def load(origin: str, name: str) -> Study:
    """The study `name` of a module (dotted name) or file (absolute path).

    Raises:
        StudyError: the module cannot be imported, or its `STUDY` is not that study.
    """

    def module() -> object:
        return modules.load_file(Path(origin)) if origin.endswith(".py") else importlib.import_module(origin)

    try:
        with contained(), same_folder(), stdout_to_stderr():
            if foreign(origin):
                known = modules.name_of_file(Path(origin)) if origin.endswith(".py") else origin
                loaded = code.importing(origin, known, lambda: _files(origin), module)
            else:
                loaded = module()
            study = getattr(loaded, "STUDY", None)
    except code.ChangedError as error:
        raise StudyError(str(error)) from error
    except Exception as error:
        raise StudyError(f"study {name!r} cannot be loaded from {origin}: {describe_error(error)}") from error
    if not isinstance(study, Study):
        raise StudyError(f"{origin} has no module-level STUDY that is a depthgauge.study.Study")
    if study.name != name:
        raise StudyError(f"the STUDY of {origin} is named {study.name!r}, where {name!r} was expected")
    return study


def discover(sources: Iterable[str] = ()) -> tuple[Found, ...]:
    """Find all studies, sorted by name; nothing is imported.

    Args:
        sources: files, folders or importable packages that hold studies of your own.

    Raises:
        UnknownStudyError: a source is not there, or holds no study.
        StudyError: two studies share a name.
    """
    studies: dict[str, Found] = {}
    for study in _everything(sources):
        other = studies.setdefault(study.name, study)
        if other.path.resolve() != study.path.resolve():
            raise StudyError(f"two studies are named {study.name!r}: {other.path} and {study.path}")
    return tuple(studies[name] for name in sorted(studies))


def find(name: str, sources: Iterable[str] = ()) -> Found:
    """The study of that name.

    Raises:
        UnknownStudyError: there is none.
        StudyError: as `discover`.
    """
    studies = {study.name: study for study in discover(sources)}
    if name in studies:
        return studies[name]
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name and (why := _brought(point)[1]):
            raise UnknownStudyError(why)
    raise UnknownStudyError(f"there is no study {name!r}; {_meant(name, studies)}")


def _meant(name: str, studies: Mapping[str, Found]) -> str:
    """The study that is meant by a name that none has: by its spelling, or by the question that it is a word for."""
    every = f"there are {', '.join(studies) or 'none'}"
    for topic in difflib.get_close_matches(name, topics.BY_NAME, n=1, cutoff=0.75):
        answering = [study.name for study in studies.values() if study.topic == topic]
        question = topics.BY_NAME[topic].question
        return f"{question!r} is asked by {' and '.join(answering) or 'none yet'}; {every}"
    near = difflib.get_close_matches(name, studies, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else every


def located(origin: object, name: str, *, outside: Path, root: object = None) -> Found:
    """Find a study of that name at the origin that a run has recorded; nothing is imported.

    What a run says may be anybody's word. So the place is a module, here or in the folder `root`, or a file or package
    by its absolute path, that declares a study of that name, and does not lie in the folder `outside`.

    Raises:
        UnknownStudyError: there is none; the message says what to do.
    """
    path = _place(origin) if isinstance(origin, str) else None
    if path is None and isinstance(origin, str) and isinstance(root, str) and _is_folder(root):
        inside = Path(root).resolve().is_relative_to(outside.resolve())
        module = None if inside else modules.find_below(Path(root), origin)
        path = None if module is None else module.file
    if path is None or not path.exists():
        raise UnknownStudyError(
            f"the study's present place is unknown ({origin}): name its file or package by --studies"
        )
    if path.resolve().is_relative_to(outside.resolve()):
        raise UnknownStudyError(f"{path} lies in the run's own directory: name it by --studies if it may be run")
    for study in _in_source(str(path)) if path.is_dir() else _in_file(path, str(origin)):
        if study.name == name and not study.problem:
            return study
    raise UnknownStudyError(f"{path} declares no study {name!r}: name its file or package by --studies")


def _is_folder(path: str | Path) -> bool:
    """Tell whether a folder is there; a name that is too long, or no file's, is none, and no error."""
    return os.path.isdir(path)  # noqa: PTH112 - `Path.is_dir` raises for it


def _place(origin: str) -> Path | None:
    """The file or folder of an origin."""
    if origin.endswith(".py") or Path(origin).is_absolute():
        return Path(origin) if Path(origin).is_absolute() else None
    module = modules.find(origin)
    return module.file if module is not None else None


def check_preset(study: str, preset: str, presets: Sequence[str]) -> None:
    """Check that the study has the preset.

    Raises:
        UnknownPresetError: it has not; the message names the nearest.
    """
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        listed = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(presets)}"
        raise UnknownPresetError(f"study {study!r} has no preset {preset!r}; {listed}")


def _everything(sources: Iterable[str]) -> Iterator[Found]:
    taken = {}
    for study in _in_package("depthgauge.studies"):
        taken[study.name] = study.path
        yield study
    for point in importlib.metadata.entry_points(group=GROUP):
        brought, why = _brought(point)
        if why:
            _say(why)
        for study in brought:
            if taken.setdefault(study.name, study.path) == study.path:
                yield study
            else:
                _say(f"{study.brought} is left out: {study.path} has the name of {taken[study.name]}, {study.name!r}")
    for source in sources:
        studies = tuple(_in_source(source))
        if not studies:
            raise UnknownStudyError(f"there is no study in {source!r}: a study is a file with a module-level STUDY")
        yield from studies


def _brought(point: importlib.metadata.EntryPoint) -> tuple[tuple[Found, ...], str]:
    """The studies of an entry point, and why it brings none; empty where it does."""
    owner = f" of {point.dist.name}" if point.dist else ""
    words = as_line(f"the entry point {point.name!r} ({point.value}){owner}")
    try:
        if modules.find(point.module) is not None:
            return tuple(replace(study, brought=words) for study in _in_package(point.module)), ""
        why = f"there is no module {point.module!r}"
    except AttributeError:
        why = "it does not name a module"
    except (StudyError, OSError) as error:
        why = as_line(error)
    return (), f"{words} brings no study: {why}"


def runs(study: Found, preset: str) -> bool:
    """Tell whether a study that nobody has named can be run: one that a distribution brings and that cannot is told.

    Args:
        study: the study; one that a distribution brings is imported.
        preset: the preset that is asked for.
    """
    try:
        if study.brought:
            check_preset(study.name, preset, tuple(study.load().presets))
    except (StudyError, UnknownPresetError) as error:
        _say(f"study {study.name!r} of {study.brought} is left out: {as_line(error)}")
        return False
    return True


@cache
def _say(line: str) -> None:
    """Tell a line on stderr, once."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or not there
        sys.stderr.write(f"depthgauge: {line}\n")


def _in_source(source: str) -> Iterator[Found]:
    path = Path(source)
    if os.path.isfile(path) and path.suffix == ".py":  # noqa: PTH113 - a name that is too long is none, and no error
        yield from _in_file(path.resolve(), str(path.resolve()), wanted=True)
    elif not _is_folder(path):
        with contextlib.suppress(FileNotFoundError):  # the current folder may be gone
            modules.importable(Path.cwd())
        yield from _in_package(source)
    elif (path / "__init__.py").exists():
        root, package = modules.package_of(path.resolve())
        modules.importable(root)
        yield from _in_folder(path.resolve(), package)
    else:
        yield from _in_folder(path.resolve(), None)


def _in_package(name: str) -> Iterator[Found]:
    module = modules.find(name)
    if module is None:
        raise UnknownStudyError(f"{name!r} is neither a file, a folder nor an importable package of studies")
    if module.file and not module.folders:
        yield from _in_file(module.file, name, wanted=True)
    for folder in module.folders:
        yield from _in_folder(folder, name)


def _in_folder(folder: Path, package: str | None) -> Iterator[Found]:
    if package and (folder / "__init__.py").exists():
        yield from _in_file(folder / "__init__.py", package)
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_") and path.is_file():  # no pipe, which would be waited for
            yield from _in_file(path, f"{package}.{path.stem}" if package else str(path))
    for path in filter(Path.is_file, sorted(folder.glob("*/__init__.py"))):
        yield from _in_file(path, f"{package}.{path.parent.name}" if package else str(path))


def _in_file(path: Path, origin: str, *, wanted: bool = False) -> Iterator[Found]:
    try:
        declared = declaration.read(path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: it is nested deep
        why = str(error) or "it is nested too deep"
        yield Found(path.stem, origin, path, problem=f"{path} cannot be read as Python: {why}")
        return
    if declared is not None:
        stem = path.parent.name if path.name == "__init__.py" else path.stem
        fields = (declared.question, declared.claims, declared.presets)
        yield Found(declared.name or stem, origin, path, *fields, topic=declared.topic)
    elif wanted:
        raise StudyError(f"{path} has no module-level STUDY")
