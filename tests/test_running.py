import contextlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from depthgauge import discovery, environment, origin, places, running, store, worker
from depthgauge.encoding import decode
from depthgauge.remaining import Cost
from depthgauge.request import Request, ask, few_seeds
from depthgauge.study import Case, Chunk, Grid, Study, StudyError

pytestmark = [pytest.mark.alone, pytest.mark.slow]
STUDIES = Path(__file__).parent / "engine_studies"
WALK, TROUBLE, CLOCK, PARTLY, REFINE = (
    str(STUDIES / f"{name}.py") for name in ("walk", "trouble", "clock", "partly", "refine")
)


def bits(stored, study):
    """Every row, so that equal means equal bit by bit: order, text, NaN and all."""
    frame = stored.frame(study)
    value = frame["value"].to_numpy().view(np.int64).tolist()
    rest = [frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame if name != "value"]
    return [list(frame.columns), value, *rest]


def files(out):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path(out).glob("chunks/*/*.parquet")}


def listen_to_ctrl_c():
    """A shell lets what it starts in the background ignore Ctrl-C, and that is inherited down to here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def driver(*words, cwd):
    """`depthgauge ...` in a process group of its own, which is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "depthgauge", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,  # noqa: PLW1509 - it touches nothing that a thread could hold
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


def eventually(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The walk, undisturbed, in this process."""
    return running.run("walk", out=tmp_path_factory.mktemp("run") / "x", workers=0, sources=[WALK])


# -- equal requests, equal bits ----------------------------------------------------------------------------------------


def test_the_reference_holds_what_the_study_yielded(reference):
    frame = reference.stored.frame("walk")
    assert reference.rows == len(frame) == 6 * 2 * 2 * ((4 + 5) + (16 + 5))
    assert list(frame.columns) == [
        *("case", "kind", "scale", "seed", "steps"),
        *("layer", "layer_index", "direction", "step", "metric", "value", "status", "message"),
    ]
    ends = frame[frame["metric"] == "end"].set_index("case")["value"]
    last = frame[(frame["metric"] == "position") & (frame["step"] == frame["steps"] - 1)].set_index("case")["value"]
    assert ends.equals(last[ends.index])
    careless = frame[frame["metric"] == "careless"]["value"].to_numpy().reshape(-1, 4)
    assert np.isnan(careless[:, 2]).all()
    assert np.isposinf(careless[:, 3]).all()
    assert len(np.unique(careless[:, :2])) == careless[:, :2].size


def test_rows_are_bit_identical_for_any_number_of_workers(tmp_path, reference):
    outcome = running.run("walk", out=tmp_path, workers=2, sources=[WALK])
    assert bits(outcome.stored, "walk") == bits(reference.stored, "walk")


def test_rows_are_bit_identical_on_an_executor_of_ones_own(tmp_path, reference):
    place = running.Place(lambda _: ThreadPoolExecutor(1), workers=1)
    outcome = running.run("walk", out=tmp_path, place=place, sources=[WALK])
    assert bits(outcome.stored, "walk") == bits(reference.stored, "walk")


def test_the_state_of_the_caller_is_neither_used_nor_changed(tmp_path, reference):
    import torch

    random.seed(1)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    try:
        before = random.getstate(), torch.get_rng_state()
        again = running.run("walk", out=tmp_path, workers=0, sources=[WALK])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert bits(again.stored, "walk") == bits(reference.stored, "walk")


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_runs_nothing_again(tmp_path):
    first = running.run("clock", out=tmp_path, workers=0, sources=[CLOCK])
    before = files(tmp_path), (tmp_path / "run.json").read_bytes()
    second = running.run("clock", out=tmp_path, workers=0, sources=[CLOCK])
    assert (first.ran, first.reused, second.ran, second.reused) == (4, 0, 0, 4)
    assert (files(tmp_path), (tmp_path / "run.json").read_bytes()) == before


def test_a_larger_request_keeps_what_it_shares_with_the_smaller(tmp_path, reference):
    running.run("walk", out=tmp_path, workers=0, sources=[WALK])
    before = files(tmp_path)
    larger = running.run("walk", out=tmp_path, workers=0, request=Request("standard"), sources=[WALK])
    assert larger.reused == len(before)
    assert larger.ran == len(before) // 2
    assert before.items() <= files(tmp_path).items()
    assert set(larger.stored.frame("walk")["steps"]) == {4, 16, 64}
    smaller = running.run("walk", out=tmp_path, workers=0, sources=[WALK])
    assert smaller.ran == 0
    assert bits(smaller.stored, "walk") == bits(reference.stored, "walk")


def test_studies_meet_in_one_directory(tmp_path):
    running.run("clock", out=tmp_path, workers=0, sources=[CLOCK])
    running.run("walk", out=tmp_path, workers=0, sources=[WALK])
    stored = store.read(tmp_path)
    assert stored.studies == ("clock", "walk")
    assert stored.run["command"] == (
        f"depthgauge run clock walk --preset quick --studies {CLOCK} --studies {WALK} --out {tmp_path}"
    )
    assert len(stored.frame("clock")) == 8


@linux
def test_a_driver_that_is_killed_at_any_moment_leaves_no_orphan_and_resumes_to_the_same_bits(tmp_path):
    out = tmp_path / "x"
    words = ("run", "clock", "--preset", "slow", "--workers", "2", "--out", str(out), "--studies", CLOCK)
    finished = {}
    for moment in ((out / "run.json").exists, lambda: len(files(out)) >= 1, lambda: len(files(out)) >= 4):
        with driver(*words, cwd=tmp_path) as process:
            eventually(moment)
            workers = children(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
            eventually(lambda: not any(map(alive, workers)), 10)  # noqa: B023 - used before the next round
        assert finished.items() <= files(out).items()  # none of them was run twice
        finished = files(out)
    assert 4 <= len(finished) < 16
    rest = running.run("clock", out=out, request=Request("slow"), workers=0, sources=[CLOCK])
    assert rest.reused == len(finished)
    assert rest.ran == 16 - len(finished)
    assert finished.items() <= files(out).items()
    assert rest.stored.frame("clock")["part"].tolist() == [part for part in range(16) for _ in range(2)]
    assert not list(out.rglob("*.tmp"))


@linux
def test_a_killed_and_resumed_walk_has_the_bits_of_an_undisturbed_one(tmp_path, reference):
    out = tmp_path / "x"
    with driver("run", "walk", "--workers", "2", "--out", str(out), "--studies", WALK, cwd=tmp_path) as process:
        eventually(lambda: len(files(out)) >= 2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    resumed = running.run("walk", out=out, workers=0, sources=[WALK])
    assert bits(resumed.stored, "walk") == bits(reference.stored, "walk")


@linux
def test_a_second_stage_that_was_killed_goes_on_to_the_bits_of_an_undisturbed_one(tmp_path):
    out = tmp_path / "x"
    undisturbed = running.run("refine", out=tmp_path / "y", workers=0, sources=[REFINE])
    with driver("run", "refine", "--workers", "2", "--out", str(out), "--studies", REFINE, cwd=tmp_path) as process:
        eventually(lambda: len(files(out)) >= 7)  # of 6 in the first stage and 6 in the second
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    resumed = running.run("refine", out=out, workers=0, sources=[REFINE])
    assert resumed.reused + resumed.ran == 12
    assert resumed.reused >= 7
    assert bits(resumed.stored, "refine") == bits(undisturbed.stored, "refine")


@linux
def test_ctrl_c_ends_within_seconds_and_keeps_what_was_finished(tmp_path):
    out = tmp_path / "x"
    words = ("run", "clock", "--preset", "stuck", "--workers", "1", "--out", str(out), "--studies", CLOCK)
    with driver(*words, cwd=tmp_path) as process:
        eventually(lambda: len(files(out)) == 2)
        time.sleep(0.3)  # it is in the chunk that takes ten minutes now
        workers = children(process.pid)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, told = process.communicate(timeout=10)
    assert time.monotonic() - started < 10
    assert process.returncode == 130
    assert told.splitlines()[-1] == (
        f"depthgauge: stopped; what is finished is kept in {out}: run the same command to resume"
    )
    assert "Traceback" not in told
    eventually(lambda: not any(map(alive, workers)), 5)
    assert len(files(out)) == 2
    store.Store.open(out, store.read(out).run["fingerprint"]).close()  # nobody holds it


def test_sigterm_ends_like_ctrl_c(tmp_path):
    out = tmp_path / "x"
    words = ("run", "clock", "--preset", "stuck", "--workers", "0", "--out", str(out), "--studies", CLOCK)
    with driver(*words, cwd=tmp_path) as process:
        eventually(lambda: len(files(out)) == 2)
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run the same command to resume" in told


# -- cases that fail, workers that end ---------------------------------------------------------------------------------


def statuses(stored):
    frame = stored.frame("trouble")
    return dict(zip(frame["case"], zip(frame["status"], frame["value"], frame["message"], strict=True), strict=True))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "ArithmeticError: two lines of explanation (in act, trouble.py:"),
        ("exit", "SystemExit: 3 (in act, trouble.py:"),
        ("silent", "StudyError: study 'trouble': `run` yielded no rows for the case kind=silent,seed=1"),
        ("text", "StudyError: study 'trouble': the value of 'value' is 'seven' (str), where a number"),
    ],
)
def test_a_case_that_raises_is_a_row_and_its_neighbours_keep_theirs(tmp_path, kind, message):
    outcome = running.run("trouble", out=tmp_path, workers=0, request=Request(kind), sources=[TROUBLE])
    seen = statuses(outcome.stored)
    assert seen["kind=fine,seed=0"][:2] == ("ok", 1.0)
    assert seen["kind=fine,seed=1"][:2] == ("ok", 2.0)
    assert seen[f"kind={kind},seed=0"][:2] == ("ok", 7.0)
    status, value, told = seen[f"kind={kind},seed=1"]
    assert status == "error"
    assert np.isnan(value)
    assert told.startswith(message)
    assert "\n" not in told
    assert outcome.failed == {"error": 1}
    again = running.run("trouble", out=tmp_path, workers=0, request=Request(kind), sources=[TROUBLE])
    assert again.ran == 0  # an exception is a result


def test_workers_that_die_or_hang_cost_their_own_chunk_and_are_tried_again_when_resumed(tmp_path, monkeypatch):
    marker = tmp_path / "pid"
    monkeypatch.setenv("DEPTHGAUGE_TEST_MARKER", str(marker))
    notes = []
    request = {"out": tmp_path / "x", "workers": 2, "request": Request("workers", time_limit=3.0), "sources": [TROUBLE]}
    outcome = running.run("trouble", **request, observe=lambda progress: notes.append(progress.note))
    seen = statuses(outcome.stored)
    for seed in (0, 1):  # a dead worker cannot tell which of its cases it was
        assert seen[f"kind=die,seed={seed}"][0] == "lost"
        assert seen[f"kind=die,seed={seed}"][2] == "the worker ended twice: killed from outside, or out of memory"
        assert seen[f"kind=spawn,seed={seed}"][0] == "timeout"
        assert "exceeded the limit of 3 s twice (in hang, trouble.py:" in seen[f"kind=spawn,seed={seed}"][2]
        assert seen[f"kind=fine,seed={seed}"][:2] == ("ok", 1.0 + seed)
    assert seen["kind=raise,seed=0"][:2] == ("ok", 7.0)
    assert seen["kind=raise,seed=1"][0] == "error"
    assert outcome.failed == {"error": 1, "lost": 2, "timeout": 2}
    assert sum("it is run again, alone" in note for note in notes) >= 2
    eventually(lambda: not alive(int(marker.read_text())), 5)  # nor does what a hanging case had started live on

    monkeypatch.setenv("DEPTHGAUGE_TEST_PEACE", "1")
    before = files(tmp_path / "x")
    resumed = running.run("trouble", **{**request, "workers": 0})
    assert (resumed.ran, resumed.reused) == (2, 2)
    assert resumed.failed == {"error": 1}
    assert len(before.items() & files(tmp_path / "x").items()) == 2


def test_a_crash_in_native_code_is_told_with_its_place(tmp_path):
    chunk = Chunk("trouble", (Case.of({"kind": "crash", "seed": 1}),))
    here = {**environment.identity("cpu"), "study_source": discovery.source(TROUBLE)}
    task = worker.Task(chunk, TROUBLE, "cpu", 60.0, here, tmp_path, driver=("elsewhere", 1))
    code = "import pickle, sys; from depthgauge import worker; worker.measure(pickle.load(sys.stdin.buffer))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(task), check=False, capture_output=True)
    assert done.returncode == -signal.SIGSEGV
    status, message = worker.last_words(task, -11)
    assert status == "lost"
    assert message.startswith("the worker ended twice: Segmentation fault (in crash, trouble.py:")


@pytest.mark.parametrize(
    ("code", "told"),
    [(3, "something in it left the process with exit code 3"), (-9, "killed from outside"), (None, "killed from")],
)
def test_a_worker_that_left_is_told_with_its_code(tmp_path, code, told):
    chunk = Chunk("trouble", (Case.of({"kind": "crash", "seed": 1}),))
    task = worker.Task(chunk, TROUBLE, "cpu", 60.0, {}, tmp_path)
    assert worker.last_words(task, code)[1].startswith(f"the worker ended twice: {told}")


def test_a_worker_that_dies_once_is_well_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHGAUGE_TEST_MARKER", str(tmp_path / "marker"))
    outcome = running.run("trouble", out=tmp_path / "x", workers=1, request=Request("once"), sources=[TROUBLE])
    assert statuses(outcome.stored)["kind=once,seed=1"][:2] == ("ok", 9.0)
    assert not outcome.failed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_while_it_has_nothing_to_do_costs_nothing(tmp_path, reference, workers):
    killed = []

    def kill(progress):
        if progress.done == 1 and not progress.note and not killed:
            killed.extend(multiprocessing.active_children())
            for process in killed:
                process.kill()
                process.join()
            time.sleep(0.5)  # for the executor to see it

    outcome = running.run("walk", out=tmp_path / "x", workers=workers, sources=[WALK], observe=kill)
    assert len(killed) == workers
    assert not outcome.failed
    assert bits(outcome.stored, "walk") == bits(reference.stored, "walk")


def test_a_thread_that_a_study_forgot_keeps_nobody_waiting(tmp_path):
    started = time.monotonic()
    outcome = running.run("trouble", out=tmp_path / "x", workers=1, request=Request("thread"), sources=[TROUBLE])
    assert time.monotonic() - started < 60  # the thread sleeps for ten minutes
    assert statuses(outcome.stored)["kind=thread,seed=1"][:2] == ("ok", 9.0)


def test_a_disk_that_is_full_is_no_result_of_a_case(tmp_path):
    with pytest.raises(running.RunError, match="disk is full"):
        running.run("trouble", out=tmp_path, workers=0, request=Request("full"), sources=[TROUBLE])
    assert [path.name.startswith("kind=fine") for path in files(tmp_path)] == [True]


# -- conditions --------------------------------------------------------------------------------------------------------


def intervals(stored):
    frame = stored.frame("clock").pivot_table(index="part", columns="metric", values="value")
    return sorted(zip(frame["started"], frame["ended"], strict=True))


def test_an_exclusive_study_has_nothing_beside_it(tmp_path):
    outcome = running.run("clock", out=tmp_path, workers=2, sources=[CLOCK])
    spans = intervals(outcome.stored)
    assert len(spans) == 4
    assert all(after[0] >= before[1] for before, after in itertools.pairwise(spans))


def test_an_exclusive_grid_has_nothing_beside_it_and_the_others_have(tmp_path):
    outcome = running.run("partly", out=tmp_path, workers=2, sources=[PARTLY])
    frame = outcome.stored.frame("partly")
    spans = frame.pivot_table(index="case", columns="metric", values="value").sort_values("started")
    alone = spans.index.str.startswith("alone")
    assert alone.sum() == 3
    assert alone.tolist() == [False] * 4 + [True] * 3
    before, after = spans["ended"].to_numpy()[:-1], spans["started"].to_numpy()[1:]
    assert (after >= before)[3:].all()  # from the last of the others on
    assert not (after >= before)[:3].all()


def study(run, presets=None, **more):
    grids = presets or {"quick": (Grid({"part": (1, 2)}, seeds=5, chunk=5),)}
    return Study("made_here", "?", grids, run, nothing, nothing, **more)


def nothing(*_):
    return ()


def test_a_chunk_has_the_threads_that_its_study_declares(tmp_path):
    import torch

    def run(cases, context):
        for case in cases:
            yield case.rows("threads", torch.get_num_threads())

    for threads in (1, 2):
        outcome = running.run(study(run, threads=threads), out=tmp_path / str(threads))
        assert set(outcome.stored.frame("made_here")["value"]) == {threads}
        assert outcome.stored.run["request"]["made_here"]["threads"] == threads


@pytest.mark.cuda
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device")
def test_rows_are_bit_identical_on_a_gpu(tmp_path):
    import torch

    def run(cases, context):
        for case in cases:
            draw = torch.Generator().manual_seed(case.random_seed())
            x = torch.randn(512, 512, generator=draw).to(context.device)
            index = torch.randint(0, 64, (512,), generator=draw).to(context.device)
            yield case.rows("product", (x @ x).sum())
            yield case.rows("scattered", torch.zeros(64, 512, device=context.device).index_add(0, index, x).flatten())

    first, second = (
        running.run(study(run), out=tmp_path / name, request=Request(device="cuda")).stored for name in "ab"
    )
    assert bits(first, "made_here") == bits(second, "made_here")


def test_scratch_is_there_for_the_chunk_and_gone_afterwards(tmp_path):
    seen = []

    def run(cases, context):
        (context.scratch / "file").touch()
        seen.append(context.scratch)
        yield from (case.rows("files", len(list(context.scratch.iterdir()))) for case in cases)

    outcome = running.run(study(run), out=tmp_path)
    assert set(outcome.stored.frame("made_here")["value"]) == {1.0}
    assert len(set(seen)) == 2
    assert not any(path.exists() for path in seen)


def test_a_buffer_that_a_study_fills_anew_is_stored_as_it_was(tmp_path):
    def run(cases, context):
        buffer = np.zeros(3)
        for case in cases:
            buffer[:] = case["seed"]
            yield case.rows("seed", buffer)
            if case["part"] == 2 and case["seed"] == 4:
                raise ValueError("late")

    frame = running.run(study(run), out=tmp_path).stored.frame("made_here")
    good = frame[frame["status"] == "ok"]
    assert len(good) == 3 * 9
    assert (good["value"] == good["seed"]).all()


def test_a_study_without_a_module_needs_this_process(tmp_path):
    with pytest.raises(StudyError, match=r"'made_here' is no module's STUDY.*workers=0"):
        running.run(study(nothing), out=tmp_path, workers=2)


def test_another_version_of_such_a_study_is_refused(tmp_path, monkeypatch):
    def run(cases, context):
        return (case.rows("x", 1) for case in cases)

    running.run(study(run), out=tmp_path)
    monkeypatch.setattr(origin, "digest", lambda _: "0" * 64)
    with pytest.raises(store.StoreError, match="'made_here' made by other code"):
        running.run(study(run), out=tmp_path)


def test_rows_of_code_that_cannot_be_told_from_other_code_are_not_resumed(tmp_path):
    cell = """
        import threading
        LOCK = threading.Lock()
        def run(cases, context):
            for case in cases:
                yield case.rows("x", float(LOCK.locked()))
    """
    scope, notes = {}, []
    exec(textwrap.dedent(cell), scope)
    running.run(study(scope["run"]), out=tmp_path, observe=lambda progress: notes.append(progress.note))
    told = (
        "made_here: no later run will take these rows: LOCK (lock), which its code names, cannot be told from another"
    )
    assert notes.count(told) == 1
    with pytest.raises(store.StoreError, match="'made_here', and whether the same code made them cannot be told"):
        running.run(study(scope["run"]), out=tmp_path)
    assert running.run(study(scope["run"]), out=tmp_path, fresh=True).reused == 0


def test_a_study_is_the_same_by_name_and_by_itself(tmp_path, reference):
    itself = reference.studies["walk"]
    by_itself = running.run(itself, itself, out=tmp_path, workers=0)
    assert by_itself.ran == 16
    assert running.run("walk", "walk", out=tmp_path, workers=0, sources=[WALK]).ran == 0
    assert by_itself.stored.run["request"] == reference.stored.run["request"]


def test_parameters_are_plain_values(tmp_path):
    grids = {"quick": (Grid({"depth": (np.arange(3),)}),)}
    with pytest.raises(StudyError, match="parameter 'depth' is a ndarray"):
        running.run(study(nothing, grids), out=tmp_path)


def test_a_worker_of_another_making_is_refused(tmp_path):
    chunk = next(Grid({"steps": (4,), "scale": (1.0,)}, seeds=1).chunks("walk"))
    other = {**environment.fingerprint("cpu"), "torch": "1.0"}
    with pytest.raises(running.RunError, match=r"would give other numbers: torch 1\.0 -> "):
        worker.measure(worker.Task(chunk, WALK, "cpu", 60.0, other, tmp_path))


def test_what_a_study_warns_of_is_told_once(tmp_path):
    import warnings

    def run(cases, context):
        for case in cases:
            warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)
            yield case.rows("x", 1)

    notes = []
    running.run(study(run), out=tmp_path, observe=lambda progress: notes.append(progress.note))
    assert [note for note in notes if note] == ["made_here: UserWarning: mind the gap"]


def test_too_few_seeds_are_told_before_anything_runs(tmp_path):
    def run(cases, context):
        return (case.rows("x", 1) for case in cases)

    seen = []
    running.run(study(run), out=tmp_path, request=Request(seeds=3), observe=seen.append)
    assert seen[0].note == "made_here: fewer than 5 seeds give points, and verdicts that are inconclusive"
    assert seen[0].done == 0
    assert (seen[-1].done, seen[-1].total, seen[-1].left) == (2, 2, 0.0)


def test_time_left_is_learnt_from_chunks_of_the_same_kind():
    small = [Chunk("s", (Case.of({"part": "small", "seed": seed}),)) for seed in range(10)]
    large = [Chunk("s", tuple(Case.of({"part": "large", "seed": 2 * n + m}) for m in range(2))) for n in range(5)]
    cost = Cost([*small, *large])
    assert cost.left(1) is None
    cost.learn(small[0], 1.0)
    assert cost.left(1) == pytest.approx(9 + 10)  # the large are taken for small while nothing better is known
    cost.learn(large[0], 20.0)
    assert cost.left(1) == pytest.approx(9 * 1.0 + 8 * 10.0)
    assert cost.left(2) == pytest.approx((9 * 1.0 + 8 * 10.0) / 2)


def test_chunk_files_tell_all_by_themselves(reference):
    path = next((reference.stored.directory / "chunks" / "walk").glob("*.parquet"))
    table, told = decode(path.read_bytes(), "walk", path.stem)
    assert told["study"] == "walk"
    assert told["fingerprint"]["torch"] == environment.fingerprint("cpu")["torch"]
    assert {"scale", "seed", "steps"} <= set(table.column_names)
    assert json.loads(table.schema.metadata[b"depthgauge"]) == told


def test_no_thread_of_ours_stays(reference):
    assert [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()] == []


def test_selection_seeds_are_stored_beside_the_others(tmp_path):
    def run(cases, context):
        for case in cases:
            yield case.rows("draw", float(case.random_seed("seed")))

    grid = Grid({"part": (1,)}, seeds=3, selection=2, chunk=2)
    frame = running.run(study(run, {"quick": (grid,)}), out=tmp_path).stored.frame("made_here")
    assert sorted(frame["seed"]) == [-2, -1, 0, 1, 2]
    assert frame["case"].tolist() == [f"part=1,seed={seed}" for seed in frame["seed"]]
    assert frame["value"].nunique() == 5


def test_too_few_seeds_for_the_first_holm_step_are_told_before_running() -> None:
    grid = Grid({"part": (1,)}, seeds=6, selection=3)
    presets = {"quick": (grid,)}
    study = Study(name="few", question="?", presets=presets, run=list, analyse=list, plot=list, comparisons=10)
    (line,) = few_seeds(ask(study, Request()), Request())
    assert "few: 6 seeds can never" in line
    assert "at least 9" in line
    assert not list(few_seeds(ask(study, Request(seeds=9)), Request(seeds=9)))


def test_the_exit_code_of_a_worker_is_waited_for(monkeypatch):
    """The executor's own thread may just be taking it: until then the process has none."""
    codes = iter([None, None, 3])

    class Ended:
        exitcode = property(lambda _: next(codes))

    workers = places.Workers(places.pool(1))
    monkeypatch.setattr(workers, "_processes", {Ended()})
    assert workers.exit_code() == 3
