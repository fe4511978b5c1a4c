"""A folder of ours takes the place of another whole, alone, and never of what is somebody else's."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from depthgauge.reports.replacing import replacing, restore
from depthgauge.store import StoreError


def made(path: Path, text: str) -> None:
    with replacing(path, "findings.json") as folder:
        (folder / "findings.json").write_text(text)


def test_an_empty_folder_and_one_of_ours_are_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.mkdir()
    for text in ("first", "second"):
        made(path, text)
        assert [each.read_text() for each in path.iterdir()] == [text]
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["thesis.tex", "profiles.json"])
def test_what_is_somebody_s_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "report"
    path.mkdir()
    (path / name).write_text("precious")
    with pytest.raises(StoreError, match=r"report is there and is no report of this kind: it has no findings\.json"):
        made(path, "ours")
    assert [each.read_text() for each in path.iterdir()] == ["precious"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_and_a_link_gives_way(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "report"
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    path.symlink_to(home)
    made(path, "ours")
    assert not path.is_symlink()
    assert (home / "thesis.tex").read_text() == "precious"
    file = tmp_path / "notes"
    file.write_text("precious")
    with pytest.raises(StoreError):
        made(file, "ours")
    assert file.read_text() == "precious"


def test_what_a_killed_process_had_taken_away_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "report"
    made(path, "first")
    path.rename(tmp_path / ".depthgauge.report.old")
    restore(path)
    assert (path / "findings.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_at_a_time_wait_for_each_other(tmp_path: Path) -> None:
    path, ended = tmp_path / "report", threading.Event()
    other = threading.Thread(target=lambda: (made(path, "other"), ended.set()))
    with replacing(path, "findings.json") as folder:
        other.start()
        assert not ended.wait(0.2)
        (folder / "findings.json").write_text("one")
    other.join(60)
    assert (path / "findings.json").read_text() == "other"
    assert list(tmp_path.iterdir()) == [path]
