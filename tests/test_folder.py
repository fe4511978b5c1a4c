"""Files of a folder that may have come from anybody."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from depthgauge.folder import Folder, OddFileError, write_whole


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    with Folder.open(tmp_path / "run") as opened:
        yield opened


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious.parquet").write_text("precious")
    yield tmp_path / "home"
    assert {path.name: path.read_text() for path in (tmp_path / "home").iterdir()} == {"precious.parquet": "precious"}


def test_what_is_written_is_read_and_nothing_is_left_beside(folder):
    folder.make(("a", "b"))
    folder.write(("a", "b", "c"), b"one")
    folder.write(("a", "b", "c"), b"two")
    assert folder.read(("a", "b", "c"), most=10) == b"two"
    assert folder.names(("a", "b")) == ("c",)
    assert folder.kind(("a",)) == "folder"
    assert folder.kind(("a", "b", "c")) == "file"
    assert folder.kind(("a", "x", "c")) == ""


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/passwd", "a\0b"])
def test_names_lead_nowhere_else(folder, name):
    for act in (
        lambda: folder.read((name,), most=10), lambda: folder.write((name,), b""), lambda: folder.make((name,)),
        lambda: folder.make((name, "x")), lambda: folder.lock_file(name),
    ):  # fmt: skip
        with pytest.raises(OddFileError, match="is no name of a file"):
            act()


def test_a_link_to_a_file_is_neither_read_nor_written_through(folder, outside):
    (folder.path / "link").symlink_to(outside / "precious.parquet")
    with pytest.raises(OddFileError, match="it is a link, and links are not followed"):
        folder.read(("link",), most=10)
    folder.write(("link",), b"new")
    assert folder.kind(("link",)) == "file"


def test_a_link_to_a_folder_is_not_entered(folder, outside):
    (folder.path / "link").symlink_to(outside)
    names = ("link", "precious.parquet")
    for act in (
        lambda: folder.read(names, most=10), lambda: folder.write(names, b""), lambda: folder.make(("link",)),
        lambda: folder.make(("link", "deeper")), lambda: folder.rename(names, "x"),
    ):  # fmt: skip
        with pytest.raises(OddFileError, match="it is a link, and links are not followed"):
            act()
    assert folder.names(("link",)) == ()
    assert folder.kind(names) == ""
    folder.remove(names)
    folder.remove_temporary(("link",))
    folder.remove_tree(names)
    folder.remove_tree(("link",))
    assert folder.kind(("link",)) == ""


def test_a_tree_is_removed_with_its_links_and_not_what_they_lead_to(folder, outside):
    folder.make(("tree", "deep"))
    (folder.path / "tree" / "deep" / "link").symlink_to(outside)
    folder.remove_tree(("tree",))
    assert folder.names() == ()


def odd(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "loop"])
def test_what_is_no_plain_file_is_refused_at_once(folder, kind, monkeypatch):
    monkeypatch.chdir(folder.path)
    odd(kind, Path("it"))
    with pytest.raises(OddFileError):
        folder.read(("it",), most=10)


def test_a_file_that_is_too_large_is_refused(folder):
    folder.write(("it",), b"x" * 11)
    with pytest.raises(OddFileError, match="it is larger than"):
        folder.read(("it",), most=10)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_a_lock_takes_the_place_of_what_is_no_plain_file(folder, kind, monkeypatch):
    monkeypatch.chdir(folder.path)
    odd(kind, Path("lock"))
    os.close(folder.lock_file("lock"))
    assert folder.kind(("lock",)) == "file"


def test_a_folder_keeps_its_place_when_a_file_is_removed(folder):
    folder.make(("a", "b"))
    folder.remove(("a",))
    folder.remove_empty(("a",))
    assert folder.kind(("a", "b")) == "folder"
    folder.remove_empty(("a", "b"))
    folder.remove_empty(("a",))
    assert folder.names() == ()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    place, link = tmp_path / "page.html", tmp_path / "links" / "page.html"
    link.parent.mkdir()
    link.symlink_to(place)
    write_whole(link, b"first")
    assert (place.read_bytes(), link.is_symlink()) == (b"first", True)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(place, b"second")
    assert place.read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["links", "page.html"]
