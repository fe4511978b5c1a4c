"""Functions on several ranks: real processes, their answers and ends."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import steps_of_users as steps
import trainings_of_users as trainings

from depthgauge import parallel
from depthgauge.parallel import ParallelError

pytestmark = [pytest.mark.alone, pytest.mark.slow]
PATIENCE = 2.0
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two ranks that end well, while others hold the ports that torch uses by default."""
    with contextlib.ExitStack() as stack:
        for port in (29400, 29500):
            held = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody else holds it
                held.bind(("127.0.0.1", port))
                held.listen()
        return parallel.launch(steps.report, 2.0, ranks=2, folder=tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def hung(tmp_path_factory):
    """Two ranks, of which one never comes to a collective; and seconds from when both were called to the end."""
    folder = tmp_path_factory.mktemp("hung")
    outcome = parallel.launch("steps_of_users:forget", str(folder), ranks=2, patience=PATIENCE, limit=50, folder=folder)
    return outcome, time.time() - (folder / "1.pid").stat().st_mtime


def test_every_rank_returns_its_answer(sound):
    assert sound.well, sound.why
    assert sound.culprit is None
    assert [answer["rank"] for answer in sound.answers] == [0, 1]
    assert [answer["ranks"] for answer in sound.answers] == [2, 2]
    assert [answer["sum"] for answer in sound.answers] == [6.0, 6.0]
    assert [answer["threads"] for answer in sound.answers] == [1, 1]
    assert [end.pid for end in sound.ends] == [answer["pid"] for answer in sound.answers]


@linux
def test_ranks_talk_on_loopback_alone(sound):
    assert {answer["address"] for answer in sound.answers} == {"127.0.0.1"}
    assert {address for answer in sound.answers for address in answer["listens"]} == {"0100007F"}


def test_the_rank_that_never_came_is_named_with_its_place_in_the_users_code(hung):
    outcome, _ = hung
    assert [end.status for end in outcome.ends] == ["waited", "hung"]
    assert outcome.answers == (None, None)
    assert outcome.culprit.rank == 1
    assert outcome.culprit.where.startswith("in sleep (steps_of_users.py:")
    assert "rank 0 waited in vain in all_reduce, called by forget (steps_of_users.py:" in outcome.why
    assert outcome.why.endswith("for 2 s")
    assert len(outcome.why) < 200


def test_a_group_that_hangs_ends_soon_after_its_patience(hung):
    _, seconds = hung
    assert PATIENCE <= seconds < PATIENCE + 15


@linux
def test_no_process_is_left(sound, hung):
    for outcome in (sound, hung[0]):
        assert len(outcome.processes) == 3
        assert not any(map(alive, outcome.processes))


@linux
def test_ranks_end_with_the_process_that_launched_them_even_if_it_is_killed(tmp_path):
    code = f"from depthgauge import parallel; parallel.launch('steps_of_users:forget', {str(tmp_path)!r}, patience=300)"
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(steps.__file__).parent))))
    launcher = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    try:
        deadline = time.monotonic() + 60
        while not all(file.exists() and file.read_text() for file in files):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = [int(file.read_text()) for file in files]
        agents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in ranks}
        assert len(agents) == 1
    finally:
        launcher.kill()
        launcher.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, (*ranks, *agents))):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)


def test_a_training_is_compared_by_name_with_a_split_of_the_users_own():
    """On one rank, with accumulation alone."""
    found = parallel.same("trainings_of_users:time_first", 1, 2, split=trainings.along_examples)
    assert (found.same, found.cause, found.decisive.sizes) == (False, "ragged", (5, 4))
    assert (found.ranks, found.accumulate) == (1, 2)
    assert "the accumulation steps have 5 and 4 examples and count alike" in found.why
    assert found.where == "body.weight_ih_l0"
    assert list(found.to_frame().name)[-2:] == ["out.weight", "out.bias"]


def nested():
    def inner(group):
        return group

    return inner


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        (lambda group: group, {}, "define it with def"),
        (nested(), {}, "define it with def"),
        (steps.report, {"ranks": 0}, "ranks are a whole number from 1 to 512, not 0"),
        (steps.report, {"ranks": True}, "ranks are a whole number"),
        (steps.report, {"device": "tpu"}, "ranks run on cpu or cuda, not on 'tpu'"),
        ("report", {}, "is not a package.module:function"),
        ("steps_of_users:nothing", {}, "steps_of_users:nothing cannot be loaded: AttributeError"),
        ("steps_of_users:__name__", {}, "is a str, which cannot be called"),
        (3, {}, "a function was expected, or its name"),
        (steps.report, {"limit": float("nan")}, "limit is a number of seconds above 0"),
        (steps.report, {"patience": "x"}, "patience is a number of seconds above 0"),
        (steps.report, {"threads": 0}, "threads are a whole number from 1"),
        (steps.report, {"folder": "/nowhere"}, "ranks cannot leave anything in /nowhere"),
        (steps.report, {"folder": 3}, "folder is a path"),
    ],
)
def test_a_wrong_use_is_one_sentence(asked, options, said):
    with pytest.raises(ParallelError) as caught:
        parallel.launch(asked, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_that_cannot_be_pickled_is_one_sentence(tmp_path):
    with pytest.raises(ParallelError, match="an argument of steps_of_users:report cannot be handed to another process"):
        parallel.launch(steps.report, lambda: None, folder=tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import dataclasses
from depthgauge import parallel


@dataclasses.dataclass
class Thing:
    number: int


def work(group, thing):
    return Thing(thing.number + group.rank)


GUARD
    outcome = parallel.launch(work, Thing(7), ranks=1)
    print(outcome.why, outcome.answers)
"""


@pytest.mark.parametrize(
    ("guard", "said"), [('if __name__ == "__main__":', "Thing(number=7)"), ("if True:", "put what it runs under if")]
)
def test_a_script_is_read_again_without_its_main_block(guard, said, tmp_path):
    """Its classes travel both ways; without a guard it would start ranks without end."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("GUARD", guard))
    found = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert said in found.stdout, found
