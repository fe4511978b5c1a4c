"""`depthgauge.run` from Python: in this process, as a script without a guard, and in a Jupyter kernel."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import depthgauge
from depthgauge import results, worker
from depthgauge.results import Result
from depthgauge.store import StoreError
from depthgauge.worker import RunError

STUDIES = Path(__file__).parent / "engine_studies"
SOURCES = [str(STUDIES / f"{name}.py") for name in ("walk", "refine", "drawn")]
PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text("utf-8")

run = functools.partial(depthgauge.run, workers=0, sources=SOURCES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run("drawn", out=tmp_path_factory.mktemp("drawn") / "x")


def test_a_result_has_rows_verdicts_findings_and_figures(drawn: Result, tmp_path: Path) -> None:
    assert drawn.studies == ("drawn",)
    frame = drawn.frame()
    assert len(frame) == drawn.outcome.rows == 10
    assert drawn.verdicts[["study", "id", "status", "n"]].to_numpy().tolist() == [["drawn", "drawn/grows", "holds", 5]]
    assert drawn.answers == ("It grows by 1 a step.", "It begins at 1.")  # the first names a figure
    (name,) = drawn.figures
    assert name == "growth"
    picture = drawn.figures[name]
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.save(tmp_path / "growth.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        picture.save(tmp_path / "growth.pdf")
    assert drawn.report().read_text("utf-8").startswith("<!doctype html>")
    assert drawn.report().parent.parent == drawn.directory


def test_a_result_shows_itself_in_a_terminal_and_in_a_notebook(drawn: Result) -> None:
    lines = repr(drawn).splitlines()
    assert lines[0] == "1 claim: 1 holds"
    assert lines[1:] == ["  - It grows by 1 a step.", "  - It begins at 1.", str(drawn.report())]
    html = drawn._repr_html_()
    assert html.count("<li>") == 2
    assert html.count("data:image/png;base64,") == 1
    assert "<Picture drawn.growth: " in repr(drawn.figures["growth"])


def test_several_studies_have_one_result_in_which_each_is_found(tmp_path: Path) -> None:
    result = run("walk", "refine", out=tmp_path / "x")
    assert set(result.studies) == {"walk", "refine"}
    assert set(result.frame()["study"]) == {"walk", "refine"}
    assert "study" not in result.frame("walk")
    assert len(result.frame("walk")) + len(result.frame("refine")) == len(result.frame())
    again = run("walk", out=tmp_path / "x")
    assert again.outcome.ran == 0
    assert again.studies == ("walk",)
    assert "study-refine" in again.report().read_text("utf-8")  # the page has all of the directory


def test_what_a_report_lacks_is_a_warning_and_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(
        (STUDIES / "walk.py").read_text().replace('"walk"', '"broken"').replace("return ()", "return 1 / 0")
    )
    with pytest.warns(UserWarning, match="not complete: broken"):
        result = run("broken", out=tmp_path / "x", sources=[str(path)])
    assert len(result.verdicts) == 1


def test_a_later_run_into_the_directory_finds_the_studies_of_earlier_ones_by_their_own_place(tmp_path: Path) -> None:
    run("walk", out=tmp_path / "x")
    later = run("drawn", out=tmp_path / "x", sources=STUDIES / "drawn.py")
    assert later.studies == ("drawn",)
    assert "study-walk" in later.report().read_text("utf-8")


def test_a_result_stays_when_the_program_moves_on_and_says_when_its_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("walk", out="x")
    monkeypatch.chdir("/")
    assert len(result.frame()) == result.outcome.rows
    assert result.report().exists()
    shutil.rmtree(tmp_path / "x")
    assert result.verdicts["observed"].dtype == float
    with pytest.raises(StoreError, match="x cannot be read: No such file"):
        result.frame()


@pytest.mark.parametrize(
    ("studies", "options", "words"),
    [
        ((["walk", "drawn"],), {}, "several stand side by side"),
        ((), {"preset": None}, "preset is None"),
        (("walk",), {"seeds": "3"}, "seeds is '3', where a whole number"),
        (("walk",), {"seeds": 0}, "seeds is 0, where 1 is the least"),
        (("walk",), {"workers": -1}, "workers is -1, where 0 is the least"),
        (("walk",), {"model": 7}, "not the model itself"),
    ],
)
def test_a_wrong_argument_is_told_by_its_name(
    studies: tuple[Any, ...], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        run(*studies, out=tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_a_worker_that_imports_a_call_of_run_says_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_is_worker", True)
    with pytest.raises(RunError, match='below `if __name__ == "__main__":`'):
        depthgauge.run("walk")


def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On small studies in place of those that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(depthgauge, "run", run, raising=False)
    page = PAGE.replace('"gradient_flow"', '"drawn"').replace('"initialization"', '"walk"')
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    both, doubling = namespace["both"], namespace["doubling"]
    assert isinstance(both, Result)
    assert isinstance(doubling, Result)
    assert set(both.studies) == {"drawn", "walk"}
    assert doubling.verdicts[["status", "observed"]].to_numpy().tolist() == [["holds", 2.0]]
    assert (tmp_path / "growth.png").exists()


def test_the_page_names_the_options_that_there_are() -> None:
    names = set(results.run.__kwdefaults__ or {})
    listed = re.search(r"## What is asked\n\n(.*?) are the options", PAGE, re.DOTALL)
    assert listed
    assert set(re.findall(r"`(\w+)`", listed[1])) == names


@pytest.mark.slow
def test_a_script_needs_no_guard_and_runs_once(tmp_path: Path) -> None:
    script = f"""
        import depthgauge
        print("begun")
        result = depthgauge.run("walk", workers=1, out="x", sources={SOURCES!r})
        print(len(result.frame()))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    begun, rows = done.stdout.split()
    assert (begun, int(rows) > 0) == ("begun", True)


@pytest.mark.slow
def test_a_notebook_shows_the_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    cells = [
        f"import depthgauge\nresult = depthgauge.run('drawn', workers=0, out='x', sources={SOURCES!r})\nresult",
        "result.figures['growth']",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, second = ([output for output in cell.outputs if "data" in output] for cell in notebook.cells)
    assert "It grows by 1 a step." in first[0].data["text/html"]
    assert "image/png" in second[0].data
