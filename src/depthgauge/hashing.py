"""SHA-256 of functions as they are in memory: their bytecode, and all values that it names, in turn.

    digest(study.run, study.second)     # the same in another process; other where a helper, constant or closure is
    unknown()                           # in its place, where a value cannot be told from another

Of what is installed the name counts, of values that a pickle could hold their parts. Positions, names of files,
comments and addresses do not.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from depthgauge import code, environment
from depthgauge.modules import is_installed

UNKNOWN = "unknown-"  # begins what stands for a digest that there is not

_MOST = 1_000_000  # values that are read
_DESCRIPTORS = (
    types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
_OF_CLASSES = {  # entries of a class that no study computes with, or that Python writes when it pleases
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__", "__firstlineno__",
    "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl",
}  # fmt: skip


class UnreadableError(ValueError):
    """Value that cannot be told from another; the message names it."""


def digest(*values: object) -> str:
    """SHA-256 of functions or other values, and of all that they name.

    Raises:
        UnreadableError: one of these cannot be told from another.
    """
    return _Reader([_MOST]).of(*values)


def unknown() -> str:
    """Make up what stands for a digest that there is not: another one each time."""
    return f"{UNKNOWN}{uuid.uuid4().hex}"


@functools.cache
def installed(module: object) -> bool:
    """Tell whether a module of that name is Python's, depthgauge's or an installed package's."""
    if not isinstance(module, str) or module == "__main__":
        return False
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "depthgauge":
        return True
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return any(is_installed(Path(place)) for place in places if place)


def _named(value: object) -> str:
    """`module:name` of what is installed and found by its name; empty for all else."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not installed(module):
        return ""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value or isinstance(value, type) else ""


def _codes(of: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions in it."""
    yield of
    for constant in of.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(of: types.CodeType, *operations: str) -> list[str]:
    """What instructions of these names name, sorted."""
    instructions = (each for part in _codes(of) for each in dis.get_instructions(part) if each.opname in operations)
    return sorted({str(each.argval) for each in instructions})


class _Reader:
    """One pass over values.

    Args:
        left: values that may be read yet; shared with the passes that this one makes.
        name: of the variable that is read.
    """

    def __init__(self, left: list[int], name: str = "") -> None:
        self._hash = hashlib.sha256()
        self._left = left
        self._name = name
        self._places: dict[int, int] = {}  # id -> when it was met: what holds itself ends, and no address is hashed
        self._held: list[object] = []  # so that no id is given again

    def of(self, *values: object) -> str:
        try:
            for value in values:
                self._read(value)
        except RecursionError as error:
            raise self._unreadable(values[0], "is nested too deep") from error
        return self._hash.hexdigest()

    def _put(self, *words: str | bytes) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass") if isinstance(word, str) else word
            self._hash.update(f"{len(data)}:".encode() + data)

    def _unreadable(self, value: object, why: str = "cannot be told from another") -> UnreadableError:
        what = f"{self._name} ({type(value).__name__}), which its code names," if self._name else type(value).__name__
        return UnreadableError(f"{what} {why}")

    def _read(self, value: object) -> None:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise self._unreadable(value, f"makes more than {_MOST:,} values")
        kind = type(value)
        if kind in _ATOMS:
            self._put(kind.__name__, _ATOMS[kind](value))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif kind is tuple:
            self._all("tuple", value)  # type: ignore[arg-type]  # it is one
        elif kind is frozenset:
            self._set(value)  # type: ignore[arg-type]  # likewise
        elif id(value) in self._places:
            self._put("again", str(self._places[id(value)]))
        else:
            self._places[id(value)] = len(self._places)
            self._held.append(value)
            self._once(value)

    def _once(self, value: Any) -> None:
        if name := _named(value):
            self._put("named", name)
        elif (how := _KINDS.get(type(value))) is not None:
            how(self, value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, _DESCRIPTORS):
            self._put("descriptor", value.__name__)
        elif (torch := sys.modules.get("torch")) and isinstance(value, torch.Tensor):
            self._tensor(value, torch)
        elif (numpy := sys.modules.get("numpy")) and isinstance(value, numpy.ndarray | numpy.generic):
            self._array(value)
        else:
            self._object(value)

    def _all(self, kind: str, values: Iterable[object]) -> None:
        values = list(values)
        self._put(kind, str(len(values)))
        for value in values:
            self._read(value)

    def _set(self, values: Iterable[object]) -> None:
        self._put("set", *sorted(_Reader(self._left, self._name).of(value) for value in values))

    def _variable(self, name: str, value: object) -> None:
        before, self._name = self._name, name
        self._put("variable", name)
        self._read(value)
        self._name = before

    # -- code ----------------------------------------------------------------------------------------------------------

    def _code(self, of: types.CodeType) -> None:
        counts = (of.co_argcount, of.co_posonlyargcount, of.co_kwonlyargcount, of.co_flags)
        self._put("code", of.co_code, of.co_exceptiontable)
        self._read((*counts, of.co_names, of.co_varnames, of.co_cellvars, of.co_freevars, of.co_consts))

    def _function(self, function: types.FunctionType) -> None:
        of = function.__code__
        self._put("function")
        self._read((of, function.__defaults__, function.__kwdefaults__, vars(function)))
        for name, cell in zip(of.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._variable(name, cell.cell_contents)
            except ValueError as error:
                if isinstance(error, UnreadableError):
                    raise
                self._put("empty")
        if installed(function.__module__):
            return
        for name in _names(of, "LOAD_GLOBAL", "LOAD_NAME"):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._variable(name, value)
                if isinstance(value, types.ModuleType) and not installed(value.__name__):
                    self._attributes(value, of)
        for name in filter(None, _names(of, "IMPORT_NAME")):
            self._import(name)

    def _attributes(self, module: types.ModuleType, of: types.CodeType) -> None:
        """Of a user's module what the code may name of it."""
        for name in sorted({name for part in _codes(of) for name in part.co_names} & vars(module).keys()):
            self._variable(f"{module.__name__}.{name}", vars(module)[name])

    def _import(self, name: str) -> None:
        """Of a user's module that is imported within a function its files: it may not be loaded yet."""
        top = name.partition(".")[0]
        spec = None if installed(top) else find_spec(top)
        if spec and spec.origin:
            origin = Path(spec.origin)
            root = origin.parent.parent if spec.submodule_search_locations else origin.parent
            self._put("import", environment.digest(code.behind(name, root)))

    def _method(self, method: types.MethodType) -> None:
        self._all("method", (method.__func__, method.__self__))

    def _builtin(self, function: types.BuiltinFunctionType) -> None:
        of = function.__self__
        self._put("builtin", function.__name__)
        self._read(of.__name__ if isinstance(of, types.ModuleType) else of)

    def _module(self, module: types.ModuleType) -> None:
        self._put("module", module.__name__)

    def _class(self, of: type) -> None:
        self._all("class", (of.__name__, type(of), of.__bases__))
        for name in sorted(vars(of).keys() - _OF_CLASSES):
            self._put(name)
            self._read(vars(of)[name])

    # -- data ----------------------------------------------------------------------------------------------------------

    def _dict(self, values: dict[object, object]) -> None:
        self._all("dict", (part for pair in values.items() for part in pair))

    def _array(self, value: Any) -> None:
        self._put("array", str(value.dtype), str(value.shape))
        if value.dtype.hasobject:
            self._read(value.tolist())
        else:
            self._put(value.tobytes())

    def _tensor(self, value: Any, torch: Any) -> None:
        try:
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            self._put("tensor", type(value).__name__, str(value.dtype), str(value.device), str(tuple(value.shape)))
            self._put(str(value.stride()), str(value.requires_grad), data)
        except Exception as error:
            raise self._unreadable(value) from error

    def _object(self, value: Any) -> None:
        """Any other object as `pickle` would take it apart."""
        try:
            raised = isinstance(value, BaseException)  # others (tblib) have its traceback pickled with it
            special = None if raised else copyreg.dispatch_table.get(type(value))
            reduced = special(value) if special else value.__reduce_ex__(4)
        except Exception as error:
            raise self._unreadable(value) from error
        if isinstance(reduced, str):
            self._put("global", type(value).__module__, type(value).__qualname__, reduced)
            return
        make, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
        self._all("object", (make, tuple(arguments), state))
        self._all("items", items or ())
        self._all("pairs", pairs or ())


_ATOMS: dict[type, Callable[[Any], str | bytes]] = {
    type(None): repr, bool: repr, int: hex, float: float.hex, complex: repr, str: str, bytes: bytes,
    type(...): repr, type(NotImplemented): repr,
}  # fmt: skip
_KINDS: dict[type, Callable[[_Reader, Any], None]] = {
    list: lambda self, value: self._all("list", value),
    dict: _Reader._dict,
    set: _Reader._set,
    types.MappingProxyType: lambda self, value: self._dict(dict(value)),
    types.FunctionType: _Reader._function,
    types.MethodType: _Reader._method,
    types.BuiltinFunctionType: _Reader._builtin,
    types.ModuleType: _Reader._module,
    property: lambda self, value: self._all("property", (value.fget, value.fset, value.fdel)),
    staticmethod: lambda self, value: self._all("static", (value.__func__,)),
    classmethod: lambda self, value: self._all("class method", (value.__func__,)),
    functools.cached_property: lambda self, value: self._all("cached", (value.func,)),
    type(functools.lru_cache(lambda: None)): lambda self, value: self._all("cache", (value.__wrapped__,)),
}
