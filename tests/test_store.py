import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from depthgauge import folder, store
from depthgauge.encoding import Failure, encode
from depthgauge.store import Store, StoreError
from depthgauge.study import Case, Chunk

HERE = {"torch": "2.9", "source": "a" * 64, "cores": 2}
CHUNKS = tuple(
    Chunk("demo", tuple(Case.of({"depth": depth, "kind": "x", "seed": seed}) for seed in range(2))) for depth in (2, 1)
)


def data(chunk, value=1.0, fingerprint=HERE):
    return encode(chunk, [case.rows("loss", value, step=0) for case in chunk.cases], fingerprint).data


def fill(directory, fingerprint=HERE, chunks=CHUNKS, study="demo"):
    with Store.open(directory, fingerprint) as opened:
        opened.plan({study: {"preset": "quick", "seeds": None, "origin": None}}, {study: chunks})
        for chunk in chunks:
            opened.write(chunk, data(chunk))
    return store.read(directory)


def chunk_file(directory, chunk=CHUNKS[0]):
    return Path(directory) / "chunks" / chunk.study / f"{chunk.id}.parquet"


# -- reading -----------------------------------------------------------------------------------------------------------


def test_rows_are_read_in_the_order_of_the_request(tmp_path):
    frame = fill(tmp_path).frame("demo")
    assert frame["depth"].tolist() == [2, 2, 1, 1]
    assert frame["seed"].tolist() == [0, 1, 0, 1]
    assert list(frame.columns) == [
        *("case", "depth", "kind", "seed", "layer", "layer_index", "direction", "step"),
        *("metric", "value", "status", "message"),
    ]
    assert frame["value"].dtype == np.float64
    assert frame["step"].dtype == np.int64
    assert frame["layer"].isna().all()


def test_columns_have_the_types_of_their_parameters_and_what_a_case_lacks_is_missing(tmp_path):
    cases = [
        {"n": 1, "x": 1, "flag": True, "mixed": 1},
        {"n": 2, "x": 0.5, "flag": False, "mixed": "two"},
        {"n": 3, "only": "here", "x": None, "flag": True},
    ]
    chunks = tuple(Chunk("demo", (Case.of(case),)) for case in cases)
    frame = fill(tmp_path, chunks=chunks).frame("demo")
    assert frame["n"].dtype == np.int64
    assert frame["x"].dtype == np.float64
    assert frame["flag"].dtype == bool
    assert frame["mixed"].tolist()[:2] == [1, "two"]
    assert frame["mixed"].isna().tolist() == [False, False, True]
    assert np.array_equal(frame["x"], [1.0, 0.5, np.nan], equal_nan=True)
    assert frame["only"].isna().tolist() == [True, True, False]
    assert frame["only"][2] == "here"


def test_what_is_not_finished_is_told_and_what_no_longer_is_asked_for_is_not_read(tmp_path):
    fill(tmp_path)
    chunk_file(tmp_path).unlink()
    stored = store.read(tmp_path)
    assert stored.missing("demo") == 1
    assert stored.frame("demo")["depth"].tolist() == [1, 1]
    with Store.open(tmp_path, HERE) as opened:
        opened.plan({"demo": {"preset": "quick"}}, {"demo": CHUNKS[:1]})
        assert opened.finished(CHUNKS[:1]) == {}
    assert store.read(tmp_path).frame("demo").empty
    assert list(store.read(tmp_path).frame("demo").columns[-3:]) == ["value", "status", "message"]


def test_a_million_rows_read_back(tmp_path):
    chunks = tuple(Chunk("demo", (Case.of({"kind": f"k{index}"}),)) for index in range(100))
    values = np.arange(10_000.0)
    with Store.open(tmp_path, HERE) as opened:
        opened.plan({"demo": {}}, {"demo": chunks})
        for chunk in chunks:
            opened.write(chunk, encode(chunk, [chunk.cases[0].rows("x", values, step=range(10_000))], HERE).data)
    frame = store.read(tmp_path).frame("demo")
    assert len(frame) == 1_000_000
    assert (frame["value"] == frame["step"]).all()
    assert frame["kind"].iloc[[0, -1]].tolist() == ["k0", "k99"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a run directory: it has no run.json"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "run.json is damaged"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("[]")), "not of this version"),
    ],
)
def test_what_is_no_run_directory_is_told_in_a_sentence(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(StoreError, match=message):
        store.read(tmp_path / "x")


def test_a_study_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StoreError, match="holds no study 'other'; it holds demo"):
        fill(tmp_path).frame("other")


# -- damage ------------------------------------------------------------------------------------------------------------


CUT = {
    "half": lambda old: old[: len(old) // 2],
    "empty": lambda _: b"",
    "flipped": lambda old: old[:-9] + bytes([old[-9] ^ 1]) + old[-8:],
}


@pytest.mark.parametrize("spoil", CUT.values(), ids=CUT)
def test_a_damaged_file_stops_a_report_and_is_measured_anew_by_a_run(tmp_path, spoil):
    stored = fill(tmp_path)
    path = chunk_file(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(StoreError, match=r"is damaged .*; run again into"):
        stored.frame("demo")
    with Store.open(tmp_path, HERE) as opened:
        assert list(opened.finished(CHUNKS)) == [CHUNKS[1].id]
        assert len(opened.notes) == 1
        assert "set aside" in opened.notes[0]
        assert not path.exists()
        assert path.with_suffix(".damaged").exists()
        opened.write(CHUNKS[0], data(CHUNKS[0]))
        assert set(opened.finished(CHUNKS)) == {chunk.id for chunk in CHUNKS}


def test_chunks_that_a_worker_was_lost_in_are_not_finished(tmp_path):
    with Store.open(tmp_path, HERE) as opened:
        opened.plan({"demo": {}}, {"demo": CHUNKS})
        for chunk, status in zip(CHUNKS, ("error", "lost"), strict=True):
            opened.write(chunk, encode(chunk, [Failure(case, status, "why") for case in chunk.cases], HERE).data)
        finished = opened.finished(CHUNKS)
    assert {name: dict(summary.failed) for name, summary in finished.items()} == {CHUNKS[0].id: {"error": 2}}
    assert store.read(tmp_path).frame("demo")["status"].tolist() == ["error", "error", "lost", "lost"]


# -- one driver, one fingerprint ---------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_by_the_name_of_the_first(tmp_path):
    with Store.open(tmp_path, HERE):
        with pytest.raises(StoreError, match=rf"is in use by process {os.getpid()} on .+, since 2.+; wait for it"):
            Store.open(tmp_path, HERE)
        with pytest.raises(StoreError, match="is in use"):
            Store.open(tmp_path, HERE, fresh=True)
    Store.open(tmp_path, HERE).close()


HOLD = """
import sys, time
from depthgauge.store import Store
store = Store.open(sys.argv[1], {"torch": "2.9", "source": "a" * 64, "cores": 2})
(store.work / "left").touch()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_dead_driver_is_taken_over(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match=f"in use by process {holder.pid} "):
                Store.open(tmp_path, HERE)
        finally:
            holder.send_signal(signal.SIGKILL)
    (tmp_path / ".depthgauge.999.tmp").touch()  # cut short while it was written
    with Store.open(tmp_path, HERE) as opened:
        assert not list(opened.work.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".depthgauge.lock", "run.json"]


def test_rows_made_otherwise_are_refused_by_what_differs(tmp_path):
    stored = fill(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = {**HERE, "torch": "2.10", "source": "b" * 64, "cores": 64}
    with pytest.raises(StoreError) as refused:
        Store.open(tmp_path, other)
    assert str(refused.value) == (
        f"{tmp_path} holds rows from another environment: source aaaaaaaa -> bbbbbbbb, torch 2.9 -> 2.10;"
        " use another --out, or --fresh to start over"
    )
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    Store.open(tmp_path, {**HERE, "cores": 64}).close()  # cores change no number
    with Store.open(tmp_path, other, fresh=True) as opened:
        assert opened.run["fingerprint"] == other
        assert opened.run["request"] == {}
    assert not chunk_file(tmp_path).exists()
    assert stored.missing("demo") == 2


def test_a_chunk_from_elsewhere_is_set_aside(tmp_path):
    fill(tmp_path)
    chunk_file(tmp_path).write_bytes(data(CHUNKS[0], fingerprint={**HERE, "torch": "1.0"}))
    with Store.open(tmp_path, HERE) as opened:
        assert list(opened.finished(CHUNKS)) == [CHUNKS[1].id]
        assert "torch 1.0 -> 2.9" in opened.notes[0]


# -- what is not ours --------------------------------------------------------------------------------------------------


def test_fresh_removes_what_depthgauge_made_and_nothing_else(tmp_path):
    fill(tmp_path)
    ours = ["report/report.md", "report/demo.md", "report/index.html", "report/findings.json", "report/figures/a.svg"]
    ours += ["report/tables/demo.t.csv", "chunks/demo/x.damaged"]
    theirs = ["notes.txt", "report/notes.md", "chunks/mine.txt", "chunks/demo/mine.txt", "report/figures/mine.pdf"]
    for name in [*ours, *theirs]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Store.open(tmp_path, HERE, fresh=True).close()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    aside = f"report.{os.getpid()}.aside/"  # of whose place the next report will be
    kept = [name.replace("report/", aside) for name in theirs]
    assert left == sorted([*kept, ".depthgauge.lock", "run.json"])
    assert not (tmp_path / aside / "tables").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_directory_of_somebody_else_is_left_alone(tmp_path, fresh):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"is not a run directory: it holds 'thesis.tex' and no run.json"):
        Store.open(tmp_path, HERE, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_directory_is_told(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(StoreError, match="x cannot be written: File exists"):
        Store.open(tmp_path / "x", HERE)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_nothing_finished_and_the_run_goes_on_later(small_disk):
    directory = small_disk / "run"
    fill(directory, chunks=CHUNKS[:1])
    before = chunk_file(directory).read_bytes()
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
    with pytest.raises(StoreError, match="the disk is full; what is finished is kept: make room"):
        fill(directory)
    assert chunk_file(directory).read_bytes() == before
    assert not list(directory.rglob("*.tmp"))
    assert store.read(directory).frame("demo")["depth"].tolist() == [2, 2]
    ballast.unlink()
    assert fill(directory).frame("demo")["depth"].tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("step", ["fsync", "write", "replace"])
def test_a_write_that_fails_at_any_step_leaves_nothing_behind(tmp_path, monkeypatch, step):
    fill(tmp_path, chunks=CHUNKS[:1])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store.open(tmp_path, HERE) as opened:
        opened.plan({"demo": {}}, {"demo": CHUNKS})
        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(folder, "_create", full)
            else:
                patch.setattr(os, step, full)
            with pytest.raises(StoreError, match="the disk is full"):
                opened.write(CHUNKS[1], data(CHUNKS[1]))
        assert not chunk_file(tmp_path, CHUNKS[1]).exists()
        assert not list(tmp_path.rglob("*.tmp"))
        opened.write(CHUNKS[1], data(CHUNKS[1]))
    assert len(store.read(tmp_path).frame("demo")) == 4


LIMITED = """
import resource, sys
from depthgauge.store import Store, StoreError
from depthgauge.encoding import encode
from depthgauge.study import Case, Chunk
import numpy as np
fingerprint = {"torch": "2.9", "source": "a" * 64, "cores": 2}
case = Case.of({"seed": 7})
chunk = Chunk("demo", (case,))
noise = encode(chunk, [case.rows("x", np.random.default_rng(0).standard_normal(100_000))], fingerprint).data
with Store.open(sys.argv[1], fingerprint) as store:
    store.plan({"demo": {}}, {"demo": (chunk,)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    try:
        store.write(chunk, noise)
    except StoreError as error:
        print(error)
"""


def test_a_file_size_limit_is_a_full_disk_too(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], check=True, capture_output=True, text=True)
    assert "the disk is full; what is finished is kept" in done.stdout
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.parquet"))


def test_run_json_is_plain_and_stays_as_it_is(tmp_path):
    fill(tmp_path)
    first = (tmp_path / "run.json").read_bytes()
    run = json.loads(first)
    assert run["schema"] == 1
    assert run["fingerprint"] == HERE
    assert run["chunks"] == {"demo": [chunk.id for chunk in CHUNKS]}
    assert run["request"]["demo"]["preset"] == "quick"
    fill(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == first
