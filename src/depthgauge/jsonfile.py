"""JSON of an untrusted file: read within bounds, and checked against types.

    told = read(folder / "run.json")                      # a JsonError's message is a sentence that names the file
    told = parse(data)                                    # the same for bytes that are here already
    ceilings = conform(told["ceilings"], Ceilings, "ceilings")

Only regular files are opened, so that a named pipe or a device cannot make a program wait; no more than a stated number
of bytes is read or unpacked; what is nested deeper than a stated number is refused, so that no later recursion meets
it. NaN, Infinity and numbers that no double or 64-bit integer holds are not JSON here: every number that is returned
can be computed with.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import types
import typing
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

T = TypeVar("T")

MEBIBYTE = 1 << 20
AT_MOST, DEEPEST = 64 * MEBIBYTE, 64
_GZIP, _WINDOW = b"\x1f\x8b", 16 + zlib.MAX_WBITS
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # surrogates, paired or not
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_ROUND = bytes.maketrans(b"[]{}", b"()()")
_NO_BRACKETS = bytes(set(range(256)) - set(b"()"))
_KINDS = {str: "text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


class JsonError(ValueError):
    """Unreadable JSON; the message is one sentence, or names the kind of file."""


class NoFileError(JsonError):
    """Missing file."""


# -- bytes -------------------------------------------------------------------------------------------------------------


def read(path: Path, *, at_most: int = AT_MOST, deepest: int = DEEPEST, utf8: bool = False) -> Any:
    """The value in a JSON file, which may be compressed by gzip.

    Args:
        path: the file.
        at_most: bytes that it may have, packed and unpacked.
        deepest: lists and objects that may lie within each other.
        utf8: refuse text that UTF-8 cannot spell; JSON, and the names of some files, can have it.

    Raises:
        NoFileError: there is none.
        JsonError: it cannot be read, is not a regular file, too large, too deep or no JSON.
    """
    try:
        return parse(_unpacked(content(path, at_most), at_most), deepest=deepest, utf8=utf8)
    except (FileNotFoundError, NotADirectoryError, UnicodeEncodeError) as error:  # the last: no name of a file
        raise NoFileError(f"there is no file {path}") from error
    except OSError as error:
        raise JsonError(f"{path} cannot be read: {error.strerror or error}") from error
    except JsonError as error:
        raise JsonError(f"{path} {error}") from error


def content(path: Path, at_most: int = AT_MOST) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: there is none, or it cannot be opened.
        JsonError: it is something else, or larger; the message says what it is.
    """
    if "\0" in str(path):
        raise FileNotFoundError(path)
    # Without O_NONBLOCK, opening a named pipe waits for who writes into it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise JsonError("is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:  # it may grow meanwhile
            data = file.read(at_most + 1) if status.st_size <= at_most else b""
    finally:
        os.close(descriptor)
    if max(len(data), status.st_size) > at_most:
        raise JsonError(f"is larger than {_size(at_most)}, the limit for such a file")
    return data


def _unpacked(data: bytes, at_most: int) -> bytes:
    if not data.startswith(_GZIP):
        return data
    unpacker = zlib.decompressobj(_WINDOW)
    try:
        plain = unpacker.decompress(data, at_most + 1)
    except zlib.error as error:
        raise JsonError(f"is damaged: {error}") from error
    if len(plain) > at_most:
        raise JsonError(f"unpacks to more than {_size(at_most)}, the limit for such a file")
    if not unpacker.eof:
        raise JsonError("is damaged: its compressed content is cut short")
    return plain


def _size(size: int) -> str:
    return f"{size / MEBIBYTE:g} MiB"


# -- values ------------------------------------------------------------------------------------------------------------


def parse(data: bytes, *, deepest: int = DEEPEST, utf8: bool = False) -> Any:
    """The value that bytes spell; bounds as in `read`.

    Raises:
        JsonError: they spell none, or one that is nested too deep.
    """
    try:
        value = json.loads(data, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except JsonError:
        raise
    except RecursionError as error:
        raise _too_deep(deepest) from error
    except UnicodeDecodeError as error:
        raise JsonError("is not JSON: it is not UTF-8 text") from error
    except ValueError as error:
        raise JsonError(f"is not JSON: {error}") from error
    if _deeper(data, deepest):
        raise _too_deep(deepest)
    if utf8 and _HALVES.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise JsonError("holds half of a surrogate pair, which is no text") from error
    return value


def _deeper(data: bytes, deepest: int) -> bool:
    """Tell whether valid JSON is nested deeper, without recursion: each pass takes the innermost brackets away."""
    left = _STRING.sub(b"", data).translate(_ROUND).translate(None, _NO_BRACKETS)
    for _ in range(deepest):
        if not left:
            return False
        left = left.replace(b"()", b"")
    return bool(left)


def _too_deep(deepest: int) -> JsonError:
    return JsonError(f"is nested more than {deepest} deep")


def _refuse(text: str) -> NoReturn:
    raise JsonError(f"is not JSON: it holds {text} as a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(_short(text))


def _whole(text: str) -> int:
    if len(text) > 20:  # those of 64 bits, with or without a sign, have no more
        _refuse(_short(text))
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 64 else _refuse(text)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


# -- types -------------------------------------------------------------------------------------------------------------


def conform(value: object, kind: type[T], where: str = "it") -> T:
    """A value from JSON as a type: scalars, unions, mappings from text, lists, tuples and dataclasses of them.

    An object becomes a dataclass by its fields: those with defaults may be missing, others than its fields are refused.
    A list becomes a tuple. An integer does for a number, true and false do not.

    Args:
        value: from `read` or `parse`.
        kind: a class, or what an annotation may say: `tuple[float, ...]`, `Mapping[str, int | None]`.
        where: names the value in the message: `benchmarks[3].stats`.

    Raises:
        JsonError: it is of another type; the message says where.
    """
    return cast("T", _conform(value, kind, where))


def _conform(value: object, kind: Any, where: str) -> object:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, inner, where)
    if origin in (tuple, list):
        return origin(_sequence(value, inner, where))
    if is_dataclass(origin):
        return _dataclass(value, cast("type", origin), where)
    return _scalar(value, origin, where) if origin in _KINDS else _mapping(value, inner, where)


def _scalar(value: object, kind: type, where: str) -> object:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _mismatch(value, where, _KINDS[kind])
    return value


def _mapping(value: object, inner: tuple[Any, ...], where: str) -> dict[str, object]:
    return {key: _conform(item, (inner or (str, Any))[1], f"{where}.{key}") for key, item in _items(value, where)}


def _one_of(value: object, kinds: tuple[Any, ...], where: str) -> object:
    if type(value) in kinds:  # an integer stays one where both kinds of number may be
        return value
    for kind in kinds:
        try:
            return _conform(value, kind, where)
        except JsonError:
            continue
    raise _mismatch(value, where, " or ".join(_KINDS.get(kind, str(kind)) for kind in kinds))


def _dataclass(value: object, kind: type, where: str) -> object:
    content, hints = dict(_items(value, where)), typing.get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    if extra := content.keys() - known:
        raise JsonError(f"has no place for {where}.{min(extra)}")
    given = {name: _conform(item, hints[name], f"{where}.{name}") for name, item in content.items()}
    try:
        return kind(**given)
    except TypeError as error:
        missing = sorted(known - content.keys())
        raise JsonError(f"lacks {where}.{missing[0]}" if missing else f"has a wrong {where}: {error}") from error


def _items(value: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise _mismatch(value, where, "an object")
    return list(value.items())


def _sequence(value: object, inner: tuple[Any, ...], where: str) -> list[object]:
    if not isinstance(value, list):
        raise _mismatch(value, where, "a list")
    each = inner[:1] * len(value) if len(inner) == 1 or inner[1:] == (...,) else inner or (Any,) * len(value)
    if len(each) != len(value):
        raise JsonError(f"has {len(value)} entries in {where}, where {len(each)} belong")
    return [
        _conform(item, item_kind, f"{where}[{place}]")
        for place, (item, item_kind) in enumerate(zip(value, each, strict=True))
    ]


def _mismatch(value: object, where: str, wanted: str) -> JsonError:
    got = _KINDS.get(type(value), "a list" if isinstance(value, list) else "an object")
    return JsonError(f"has {got} as {_short(where)}, where {wanted} belongs")
