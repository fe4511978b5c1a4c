"""`run.json` that was edited, lost, or is somebody's bomb; run directories that came from anybody."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from depthgauge import encoding, runfile, running, store
from depthgauge.cli import main
from depthgauge.encoding import DamagedError, decode
from depthgauge.request import Request
from depthgauge.store import Store, StoreError

pytestmark = pytest.mark.slow  # each runs a study, or a command in a process of its own

STUDIES = Path(__file__).parent / "engine_studies"
WALK, CLOCK = (str(STUDIES / f"{name}.py") for name in ("walk", "clock"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "x"
    running.run("walk", out=out, workers=0, sources=[WALK])
    return out


@pytest.fixture
def here(tmp_path, base, monkeypatch):
    """A folder to be in, and a copy of that run in it, as `x`."""
    shutil.copytree(base, tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    return CliRunner().invoke(main, words, prog_name="depthgauge")


RUN = ("run", "walk", "--studies", WALK, "--workers", "0", "--out", "x")
REPORT = ("report", "x", "--studies", WALK)


def sentence(result, code=1):
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line


def edit(out: Path, change):
    run = json.loads((out / "run.json").read_text())
    change(run)
    (out / "run.json").write_text(json.dumps(run))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(run):
        for name in path:
            run = run[name]
        run[last] = value

    return change


EDITS = {
    "no request": put("request", None),
    "request of text": put("request", "walk", "x"),
    "request of a path": put("request", "../../home/**/*", {}),
    "request of a long name": put("request", "a" * 300, {}),
    "preset of a list": put("request", "walk", "preset", ["quick"]),
    "seeds of text": put("request", "walk", "seeds", "many"),
    "origin of a number": put("request", "walk", "origin", 7),
    "source of a list": put("request", "walk", "source", []),
    "reasons of a list": put("request", "walk", "not_applicable", []),
    "chunks of a list": put("chunks", []),
    "chunks of text": put("chunks", "walk", "abc"),
    "chunk of a path": put("chunks", "walk", ["../../../etc/passwd"]),
    "chunk of a number": put("chunks", "walk", [3]),
    "no fingerprint": put("fingerprint", None),
    "deep fingerprint": put("fingerprint", "torch", deep(50)),
    "models of a list": put("models", []),
    "command of a list": put("command", []),
    "other version": put("schema", 99),
    "no version": put("schema", None),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_run_json_is_told_in_a_sentence_and_fresh_gets_through(here, change):
    edit(here / "x", change)
    told = sentence(call(*RUN))
    assert "run.json is " in told
    assert "--fresh to start over" in told
    reported = call(*REPORT)
    assert reported.exit_code == 0, reported.output  # from the chunks
    assert "run.json was lost" in reported.stderr
    done = call(*RUN, "--fresh")
    assert done.exit_code == 0, done.output
    assert "48 cases measured" in done.stderr


def large(path):
    path.touch()
    os.truncate(path, 2**33)


BOMBS = {
    "deep": lambda path: path.write_text("[" * 100_000),
    "deep and closed": lambda path: path.write_text("[" * 900 + "]" * 900),
    "digits": lambda path: path.write_text('{"schema": ' + "9" * 10_000 + "}"),
    "large": large,
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "surrogate": lambda path: path.write_text('{"schema": 1, "request": {"\\udce9": {}}, "chunks": {}}'),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_in_place_of_run_json_neither_hangs_nor_crashes(here, bomb):
    (here / "x" / "run.json").unlink()
    bomb(here / "x" / "run.json")
    started = time.monotonic()
    assert "run.json" in sentence(call(*RUN))
    assert call(*REPORT).exit_code == 0
    assert time.monotonic() - started < 30
    done = call(*RUN, "--fresh")
    assert done.exit_code == 0, done.output
    assert (here / "x" / "run.json").is_file()


def test_a_lost_run_json_is_found_again_from_the_chunks(here, base):
    (here / "x" / "run.json").unlink()
    before, after = store.read(base), store.read(here / "x")
    assert after.lost
    assert not before.lost
    assert after.run["fingerprint"] == before.run["fingerprint"]
    rows = [
        stored.frame("walk").sort_values(["case", "metric", "step"], ignore_index=True) for stored in (before, after)
    ]
    assert rows[0].equals(rows[1])
    result = call(*REPORT)
    assert result.exit_code == 0, result.output
    assert "run.json was lost; the report is made from the rows that are left" in result.stderr
    for page in ("report.md", "index.html"):
        assert "run.json was lost" in (here / "x" / "report" / page).read_text(encoding="utf-8")
    again = call(*RUN)
    assert "0 cases measured, 48 kept from before" in again.stderr
    assert "run.json was lost; its rows are kept" in again.stderr
    assert not store.read(here / "x").lost
    assert store.read(here / "x").frame("walk").equals(before.frame("walk"))


def test_a_lost_run_json_of_two_requests_counts_each_case_once(tmp_path):
    for seeds in (4, 5):  # in chunks of three
        asked = running.run("walk", out=tmp_path, workers=0, sources=[WALK], request=Request(seeds=seeds))
    before = asked.stored.frame("walk")
    (tmp_path / "run.json").unlink()
    result = call("report", str(tmp_path), "--studies", WALK)
    assert "left, left out, as others hold the same cases: 8 chunks of walk" in result.stderr.replace(";", ",")
    assert sorted(store.read(tmp_path).frame("walk")["case"]) == sorted(before["case"])
    again = running.run("walk", out=tmp_path, workers=0, sources=[WALK], request=Request(seeds=4))
    assert (again.ran, again.reused) == (0, 16)


def test_chunks_that_share_cases_give_way_to_those_with_more_results():
    held = {"a": ("123", 3), "b": ("345", 2), "c": ("45", 2), "d": ("6789", 0), "e": ("67", 1), "f": ("9", 1)}
    chunks = {name: runfile._Held(frozenset(cases), results) for name, (cases, results) in held.items()}
    assert runfile._apart(chunks) == ["a", "c", "e", "f"]


def test_a_lost_run_json_brings_no_rows_of_other_code_back(here):
    path = next((here / "x" / "chunks" / "walk").glob("*.parquet"))
    (here / "x" / "run.json").unlink()
    shutil.copy(WALK, here / "walk.py")
    with (here / "walk.py").open("a") as file:
        file.write("# changed\n")
    told = sentence(call("run", "walk", "--studies", "walk.py", "--workers", "0", "--out", "x"))
    assert "rows of 'walk' made by other code" in told
    (here / "x" / "run.json").unlink(missing_ok=True)
    rewrite(path, lambda told: told["fingerprint"].update(torch="0.1"))
    assert "has no run.json, and its rows differ in: torch " in sentence(call(*REPORT))


def test_rows_of_other_code_under_the_same_run_json_are_set_aside(here):
    path = next((here / "x" / "chunks" / "walk").glob("*.parquet"))
    rewrite(path, lambda told: told["fingerprint"].update(study_source="0" * 64))
    result = call(*RUN)
    assert result.exit_code == 0
    assert "its rows come from other code or another environment: study source" in result.stderr
    assert "3 cases measured in " in result.stderr


def test_a_directory_of_somebody_s_chunks_is_not_ours(tmp_path):
    (tmp_path / "chunks" / "walk").mkdir(parents=True)
    (tmp_path / "chunks" / "walk" / "notes.txt").touch()
    with pytest.raises(StoreError, match="is not a run directory: it holds 'chunks'"):
        Store.open(tmp_path, {}, fresh=True)


# -- chunks' files -----------------------------------------------------------------------------------------------------


def rewrite(path: Path, change=lambda _: None, table=lambda table: table):
    """The file as somebody would forge it: its seal is right."""
    read = pq.read_table(path)
    told = json.loads(read.schema.metadata[b"depthgauge"])
    change(told)
    forged = table(read).replace_schema_metadata(
        {b"depthgauge": json.dumps(told).encode(), b"depthgauge.seal": encoding._unsealed(b"0" * 64)}
    )
    pq.write_table(forged, path, write_page_checksum=True)
    path.write_bytes(encoding._sealed(path.read_bytes()))


FORGED = {
    "no cases": lambda told: told.update(cases=None),
    "case of text": lambda told: told.update(cases=["x"]),
    "parameter of a list": lambda told: told["cases"][0].update(kind=[1]),
    "other cases": lambda told: told.update(cases=[{"a": 1}]),
    "failures of text": lambda told: told.update(failed={"error": "many"}),
    "deep": lambda told: told["fingerprint"].update(torch=deep(200)),
    "rows of text": lambda told: told.update(rows="x"),
    "study of a list": lambda told: told.update(study=[]),
    "other study": lambda told: told.update(study="clock"),
    "other version": lambda told: told.update(schema=99),
}
TABLES = {
    "no value": lambda table: table.drop_columns("value"),
    "value of text": lambda table: table.set_column(
        table.schema.get_field_index("value"), "value", pa.array(["x"] * len(table))
    ),
    "case of integers": lambda table: table.set_column(
        table.schema.get_field_index("case"), "case", pa.array(range(len(table)))
    ),
    "case missing": lambda table: table.set_column(
        table.schema.get_field_index("case"), "case", pa.array([None] * len(table), pa.string()).dictionary_encode()
    ),
    "step of floats": lambda table: table.set_column(
        table.schema.get_field_index("step"), "step", pa.array([0.5] * len(table))
    ),
}


@pytest.mark.parametrize(
    "forge",
    [*({"change": change} for change in FORGED.values()), *({"table": table} for table in TABLES.values())],
    ids=[*FORGED, *TABLES],
)
def test_a_forged_chunk_is_told_by_a_report_and_measured_anew_by_a_run(here, forge):
    path = next((here / "x" / "chunks" / "walk").glob("*.parquet"))
    rewrite(path, **forge)
    with pytest.raises(DamagedError):
        decode(path.read_bytes(), "walk", path.stem)
    told = sentence(call(*REPORT))
    assert "is damaged" in told
    result = call(*RUN)
    assert result.exit_code == 0, result.output
    assert "3 cases measured in " in result.stderr


def test_a_file_that_says_it_holds_more_than_the_memory_is_not_read(base, monkeypatch):
    path = next((base / "chunks" / "walk").glob("*.parquet"))
    decode(path.read_bytes(), "walk", path.stem)
    monkeypatch.setattr(encoding, "memory_gib", lambda: 1e-6)
    with pytest.raises(DamagedError, match="more than this machine's memory"):
        decode(path.read_bytes(), "walk", path.stem)


ODD = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "large": large,
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_stands_in_place_of_a_chunk_is_set_aside(here, odd):
    path = next((here / "x" / "chunks" / "walk").glob("*.parquet"))
    path.unlink()
    odd(path)
    assert str(path.name) in sentence(call(*REPORT))
    result = call(*RUN)
    assert result.exit_code == 0, result.output
    assert "3 cases measured in " in result.stderr
    assert path.is_file()


def test_a_run_that_was_asked_for_nothing_yet_has_no_report(here):
    path = here / "x" / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"request": {}, "chunks": {}}))
    assert sentence(call(*REPORT)) == "depthgauge: no study has been asked for in x"


# -- links -------------------------------------------------------------------------------------------------------------

PLACES = [
    "chunks", "chunks/walk", "report", ".depthgauge.lock", ".depthgauge.driver.json", ".depthgauge.work", "run.json",
    "traces", ".depthgauge.report.new", ".depthgauge.report.old", "chunks/zz",
]  # fmt: skip


@pytest.mark.parametrize("fresh", [(), ("--fresh",)], ids=["resumed", "fresh"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_outside_is_written_or_deleted_through_a_link(here, place, fresh):
    home = here / "home"
    for name in ("a.parquet", "a.damaged", "walk.md", "report.md", ".depthgauge.1.tmp", "walk/b.parquet", "run.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("precious")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    link = here / "x" / place
    if link.is_dir():
        shutil.rmtree(link)
    elif link.exists():
        link.unlink()
    link.symlink_to(home / "a.parquet" if link.suffix in {".json", ".lock"} else home)
    ran, reported = call(*RUN, *fresh), call(*REPORT)
    for result in (ran, reported):
        assert isinstance(result.exception, SystemExit | None), result.exception
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    if fresh:
        assert ran.exit_code == 0, ran.output


def test_no_report_takes_the_place_of_somebody_s(here):
    shutil.rmtree(here / "x" / "report", ignore_errors=True)
    (here / "x" / "report").mkdir()
    (here / "x" / "report" / "thesis.tex").write_text("precious")
    assert "report holds 'thesis.tex' and no findings.json, and a report would take its place" in sentence(call(*RUN))
    assert call(*RUN, "--fresh").exit_code == 0
    assert [path.read_text() for path in (here / "x").glob("report.*.aside/thesis.tex")] == ["precious"]


def test_a_run_json_asks_for_no_file_outside(here):
    for name in ("notes.md", "d.parquet"):
        (here / name).write_text("precious")
    edit(here / "x", put("request", "../../**/*", {}))
    assert call(*RUN, "--fresh").exit_code == 0
    assert (here / "notes.md").read_text() == (here / "d.parquet").read_text() == "precious"


# -- code --------------------------------------------------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from depthgauge.study import Grid, Study
STUDY = Study(name="walk", question="?", presets={{"quick": (Grid({{"a": (1,)}}),)}}, run=list, analyse=list, plot=list)
"""


@pytest.mark.parametrize("origin", ["{x}/evil.py", "x/evil.py", "evil", "evil.walk", "../evil.py", "{x}/link/evil.py"])
def test_a_report_runs_no_code_of_its_own_directory(here, origin, monkeypatch):
    mark = here / "ran"
    monkeypatch.chdir(here / "x")
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which a study's folder is added
    Path("evil.py").write_text(EVIL.format(mark=str(mark)))
    Path("link").symlink_to(".")
    edit(here / "x", put("request", "walk", "origin", origin.format(x=here / "x")))
    result = call("report", ".")
    assert "name" in sentence(result)
    assert not mark.exists()
    for name in ("torch", "pandas", "matplotlib", "evil", "sitecustomize"):
        Path(f"{name}.py").write_text(EVIL.format(mark=str(mark)))
    done = subprocess.run(
        [sys.executable, "-m", "depthgauge", "report", "."], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()
    named = call("report", ".", "--studies", "evil.py")
    assert mark.exists(), named.output


def test_a_file_that_declares_no_such_study_is_not_run(here):
    (here / "cleanup.py").write_text(f"from pathlib import Path\nPath({str(here / 'ran')!r}).touch()\n")
    edit(here / "x", put("request", "walk", "origin", str(here / "cleanup.py")))
    assert "--studies" in sentence(call("report", "x"))
    assert not (here / "ran").exists()


def test_a_study_that_cannot_be_loaded_costs_its_section(here):
    running.run("clock", out="x", workers=0, sources=[CLOCK])
    edit(here / "x", put("request", "clock", "origin", "/nowhere/clock.py"))
    result = call("report", "x")
    assert "clock: No study named 'clock' was found" in sentence(result)
    findings = json.loads((here / "x" / "report" / "findings.json").read_text())
    assert findings["studies"]["walk"]["problems"] == []
    assert findings["studies"]["clock"]["problems"]


def test_an_analysis_of_other_code_than_the_rows_is_told(here):
    (here / "walk.py").write_text(Path(WALK).read_text() + "# changed\n")
    result = call("report", "x", "--studies", "walk.py")
    assert result.exit_code == 0
    assert "walk: its code has changed since its rows were measured" in result.stderr
    assert "has changed" not in call(*REPORT).stderr


def test_a_folder_that_is_gone_is_a_sentence(here, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (("run", "walk", "--studies", WALK), ("report", str(here / "x")), ("run", "--model", "nets:make")):
        assert "it was deleted or moved; change to another" in sentence(call(*words), 2)


def test_the_entries_are_those_that_are_checked(base):
    run = json.loads((base / "run.json").read_text())
    assert run.keys() == runfile._ENTRIES.keys()
    assert run["request"]["walk"].keys() <= runfile._ASKED.keys()
    copied = copy.deepcopy(run)
    assert store.read(base).run == copied
