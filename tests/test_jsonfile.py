import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from depthgauge.jsonfile import DEEPEST, MEBIBYTE, JsonError, NoFileError, conform, parse, read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.json"


def refused(path, **bounds):
    with pytest.raises(JsonError) as caught:
        read(path, **bounds)
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    return told.replace(str(path), "x.json")


def test_what_json_wrote_is_read_packed_or_not(path):
    value = {"a": [1, -2.5e-300, 'é\n"[{\\', None, True, {}], "b": {"c": [[]]}, "big": [2**64 - 1, -(2**63)]}
    for data in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()):
        path.write_bytes(data)
        assert read(path) == value
        path.write_bytes(gzip.compress(data))
        assert read(path) == value


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a": 1} x', "is not JSON"),
        (b'"\xe9"', "is not JSON: it is not UTF-8 text"),
        (b"\x00\x01\x02", "is not JSON"),
        (b"[NaN]", "it holds NaN as a number"),
        (b"[-Infinity]", "it holds -Infinity as a number"),
        (b"[1e999]", "it holds 1e999 as a number"),
        (b"[" + b"9" * 5000 + b"]", "it holds 9999999999999999999999999999999999999999... as a number"),
        (b"[18446744073709551616]", "it holds 18446744073709551616 as a number"),
        (b"[" * 100_000, "is nested more than 64 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested more than 64 deep"),
        (b'{"a":' * 100_000, "is nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "is nested more than 64 deep"),
        (gzip.compress(b"[]" * 100, mtime=0)[:-12], "its compressed content is cut short"),
        (b"\x1f\x8bnonsense", "is damaged"),
    ],
)
def test_what_is_no_json_is_one_sentence(path, content, told):
    path.write_bytes(content)
    assert told in refused(path)


def test_depth_is_counted_outside_of_strings(path):
    def nested(depth: int) -> bytes:
        return b'{"[[\\"[{": [1, ' * (depth // 2) + b"2" + b'], "}]": []}' * (depth // 2)

    assert parse(nested(DEEPEST))
    with pytest.raises(JsonError, match="nested"):
        parse(nested(DEEPEST + 2))
    assert parse(b'"' + b"[" * 1000 + b'"') == "[" * 1000


def test_size_is_bounded_before_and_after_unpacking(path):
    path.write_bytes(b" " * 100 + b"1")
    assert read(path, at_most=101) == 1
    assert "is larger than" in refused(path, at_most=100)
    path.write_bytes(gzip.compress(b" " * (64 * MEBIBYTE)))
    assert path.stat().st_size < MEBIBYTE
    tracemalloc.start()
    assert "unpacks to more than 1 MiB" in refused(path, at_most=MEBIBYTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MEBIBYTE


def test_a_sparse_file_of_a_terabyte_is_not_read(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "is larger than 1 MiB" in refused(path, at_most=MEBIBYTE)


def test_only_regular_files_are_opened(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = f"from pathlib import Path; from depthgauge.jsonfile import read; read(Path({str(fifo)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "is not a regular file" in done.stderr
    (tmp_path / "link").symlink_to("/dev/zero")
    assert "is not a regular file" in refused(tmp_path / "link")
    assert "is not a regular file" in refused(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refused(tmp_path / "loop")


def test_names_that_no_file_has(tmp_path):
    (tmp_path / "file").touch()
    for name in ("none", "file/none", "nul\0byte", "\ud800"):
        with pytest.raises(NoFileError, match="there is no file"):
            read(tmp_path / name)
    assert "name too long" in refused(tmp_path / ("a" * 300))


def test_bits_of_json_flipped_at_random_never_raise_otherwise(path):
    whole = json.dumps({"a": [1, 2.5, {"b": "c" * 20}], "d": None}).encode()
    draw = random.Random(0)
    for _ in range(2000):
        spoiled = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
        with contextlib.suppress(JsonError):
            parse(bytes(spoiled))


# -- types -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    ratios: Mapping[str, float]
    pair: tuple[str, float]
    maybe: str | int | None = None
    free: Any = None


GOOD = {"inner": {"name": "x", "sizes": [1, 2]}, "ratios": {"a": 1, "b": 0.5}, "pair": ["a", 1.5]}


def test_a_value_of_the_right_types_is_built():
    assert conform(GOOD, Outer) == Outer(Inner("x", (1, 2)), {"a": 1.0, "b": 0.5}, ("a", 1.5))
    assert conform({**GOOD, "maybe": 3, "free": [{}]}, Outer).maybe == 3
    assert conform([[1], []], tuple[tuple[int, ...], ...]) == ((1,), ())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"inner": None}, "has null as it.inner, where an object belongs"),
        ({"inner": {"name": 1}}, "has an integer as it.inner.name, where text belongs"),
        ({"inner": {}}, "lacks it.inner.name"),
        ({"inner": {"name": "x", "sizes": [1, True]}}, r"has true or false as it.inner.sizes\[1\], where an integer"),
        ({"inner": {"name": "x", "sizes": {}}}, "has an object as it.inner.sizes, where a list belongs"),
        ({"inner": {"name": "x", "more": 1}}, "has no place for it.inner.more"),
        ({"ratios": {"a": "b"}}, "has text as it.ratios.a, where a number belongs"),
        ({"ratios": []}, "has a list as it.ratios, where an object belongs"),
        ({"pair": ["a"]}, "has 1 entries in it.pair, where 2 belong"),
        ({"maybe": 1.5}, "has a number as it.maybe, where text or an integer or null belongs"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(change, told):
    with pytest.raises(JsonError, match=told):
        conform({**GOOD, **change}, Outer)


def test_the_reader_imports_nothing_heavy():
    code = "import sys, depthgauge.jsonfile; print({'torch', 'numpy', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
