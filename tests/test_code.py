"""Rows are of the code that they are said to be of, whatever happens to its files while a run is under way."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from depthgauge import code, discovery, environment, running, store, worker
from depthgauge.study import StudyError


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


STUDY = """
    {imports}
    from depthgauge.study import Grid, Study
    from depthgauge.verdict import Findings

    def run(cases, context):
        {late}
        for case in cases:
            yield case.rows("v", {value})

    STUDY = Study(name="edit", question="?", presets={{"quick": (Grid({{"a": (0, 1)}}),)}}, run=run,
                  analyse=lambda frame: Findings(()), plot=lambda findings: ())
"""


def text(value="1.0", imports="", late=""):
    return STUDY.format(value=value, imports=imports, late=late)


# how a study may hold its number: files, what names it, the file to change
HELD = {
    "in its file": ({"edit.py": text()}, "edit.py", "edit.py"),
    "in a module beside it": (
        {"edit.py": text("number.VALUE", "import number"), "number.py": "VALUE = 1.0\n"}, "edit.py", "number.py",
    ),
    "in a module that it imports late": (
        {"edit.py": text("late.VALUE", late="import late"), "late.py": "VALUE = 1.0\n"}, "edit.py", "late.py",
    ),
    "in a module that it names": (
        {
            "edit.py": text("value()", "from depthgauge import factories", "value = factories.load('held:value')"),
            "held.py": "def value():\n    return 1.0\n",
        },
        "edit.py",
        "held.py",
    ),
    "in a file of its package": (
        {"pack/__init__.py": "", "pack/edit.py": text("VALUE", "from .part import VALUE"),
         "pack/part.py": "VALUE = 1.0\n"},
        "pack", "pack/part.py",
    ),
    "in a folder with an __init__": (
        {"all/edit/__init__.py": text("VALUE", "from .part import VALUE"), "all/edit/part.py": "VALUE = 1.0\n"},
        "all", "all/edit/part.py",
    ),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    code._KNOWN.clear()
    for name in sys.modules.keys() - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def edit(path: Path) -> None:
    """Another number of the same length, within the same second: byte code that was cached would still be used."""
    about = path.stat()
    path.write_text(path.read_text().replace("1.0", "2.0"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def edited_once_it_runs(process, folder: Path, change) -> str:
    """What a command says whose code is changed once it has begun; it measures nothing."""
    while not (folder / "x" / "run.json").exists():
        assert process.poll() is None, process.wait().stderr
        time.sleep(0.005)
    change()
    done = process.wait()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("files", "source", "changed"), HELD.values(), ids=HELD)
def test_a_study_that_changes_between_the_driver_s_look_and_the_worker_s_import_is_not_measured(
    here, forks, files, source, changed
):
    write(here, files)
    process = forks.start(here, "run", "edit", "--studies", source, "--workers", "1", "--out", "x")
    assert "would give other numbers: " in edited_once_it_runs(process, here, lambda: edit(here / changed))
    assert store.read("x").frame("edit").empty


@pytest.mark.parametrize(("files", "source", "changed"), HELD.values(), ids=HELD)
def test_code_that_changes_between_runs_is_refused_and_told(here, forks, files, source, changed):
    write(here, files)
    words = ["run", "edit", "--studies", source, "--workers", "0", "--out", "x"]
    first = forks.run(here, *words)
    assert first.returncode == 0, first.stderr
    assert "cases measured" in first.stderr
    edit(here / changed)
    second = forks.run(here, *words)
    assert second.returncode == 1
    assert "holds rows of 'edit' made by other code" in second.stderr
    third = forks.run(here, *words, "--fresh")
    assert third.returncode == 0, third.stderr
    if source == "edit.py" and changed == "edit.py":  # Python itself may use stale byte code of imported modules
        assert set(store.read("x").frame("edit")["value"]) == {2.0}


def test_a_study_that_was_edited_since_this_process_imported_it_is_not_run_by_halves(here):
    write(here, {"edit.py": text()})
    running.run("edit", out="x", workers=0, sources=["edit.py"])
    edit(here / "edit.py")
    with pytest.raises(StudyError, match=r"edit\.py has changed since this process imported it: start a new one"):
        running.run("edit", out="y", workers=0, sources=["edit.py"])


def test_a_run_whose_study_is_edited_goes_on_with_the_code_that_it_has(here):
    write(here, {"edit.py": text()})
    edited = []

    def observe(progress):
        if progress.done == 1 and not edited:
            edit(here / "edit.py")
            edited.append(True)

    outcome = running.run("edit", out="x", workers=0, sources=["edit.py"], observe=observe)
    assert outcome.ran == 2
    assert set(outcome.stored.frame("edit")["value"]) == {1.0}


def test_a_study_that_was_edited_while_it_ran_is_told_with_its_report(here, forks):
    late = "from pathlib import Path; Path(__file__).open('a').write('# more' + chr(10))"
    write(here, {"edit.py": text(late=late)})
    done = forks.run(here, "run", "edit", "--studies", "edit.py", "--workers", "0", "--out", "x")
    assert done.returncode == 0, done.stderr
    assert "edit: its code changed during the run; rows and report come from the earlier code" in done.stderr
    again = forks.run(here, "report", "x")
    assert again.returncode == 0, again.stderr
    assert "edit: its code has changed since its rows were measured" in again.stderr


def test_a_module_that_is_imported_late_and_changed_by_then_is_not_measured(here):
    write(here, HELD["in a module that it imports late"][0])

    def observe(progress):
        if progress.done == 0 and (here / "x" / "run.json").exists():
            edit(here / "late.py")

    with pytest.raises(running.RunError, match=r"edit\.py has changed since this process imported it.*must not change"):
        running.run("edit", out="x", workers=0, sources=["edit.py"], observe=observe)
    assert store.read("x").frame("edit").empty


def test_a_long_lived_worker_with_older_code_is_refused(here):
    write(here, {"edit.py": text()})
    origin = str(here / "edit.py")
    study = discovery.load(origin, "edit")
    chunk = study.chunks("quick")[0]
    fingerprint = {**environment.identity("cpu"), "study_source": "0" * 64}
    with pytest.raises(running.RunError, match=rf"would give other numbers: code of {origin}"):
        worker.measure(worker.Task(chunk, origin, "cpu", 60.0, fingerprint, here, driver=("elsewhere", 1)))


MODEL = """
    from torch import nn
    from sizes import HIDDEN

    def make(seed=0):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 2))
"""


def test_a_model_s_factory_that_changes_in_a_run_is_not_measured(here, forks):
    write(here, {"nets.py": MODEL, "sizes.py": "HIDDEN = 8\n"})
    inside = str(Path(__file__).parent / "engine_studies" / "inside.py")
    words = ["run", "inside", "--studies", inside, "--model", "nets:make", "--workers", "1", "--out", "x"]
    change = lambda: (here / "sizes.py").write_text("HIDDEN = 9\n")  # noqa: E731 - said where it is used
    assert "code of nets:make" in edited_once_it_runs(forks.start(here, *words), here, change)
    assert store.read("x").frame("inside").empty


def test_code_that_changes_while_it_is_imported_is_told(here):
    write(
        here,
        {
            "edit.py": "from pathlib import Path\nwith Path(__file__).open('a') as f: f.write('# more\\n')\n"
            + textwrap.dedent(text())
        },
    )
    with pytest.raises(StudyError, match="changed while it was imported: start again"):
        discovery.load(str(here / "edit.py"), "edit")


def test_relative_imports_that_lead_nowhere_are_no_files(tmp_path):
    write(tmp_path, {"alone.py": "from . import x\nfrom .. import y\nimport gone\n"})
    assert code.behind("alone", tmp_path) == {"alone": tmp_path / "alone.py"}
