"""Compiled kernels come from a folder of this user's alone, or are compiled: never from where others may write."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import depthgauge
from depthgauge.probe import compiled, machine_code

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such owners and modes here")

NOBODY = 65534
NAME = f"numba-{os.getuid()}" if hasattr(os, "getuid") else ""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The three places that are looked at, in order, all of them good."""
    tmp_path.chmod(0o700)
    found = {}
    for name in ("told", "user", "temporary"):
        found[name] = tmp_path / name
        found[name].mkdir(mode=0o700)
    monkeypatch.setattr(machine_code._config, "CACHE_DIR", str(found["told"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(found["user"]))
    monkeypatch.setattr(machine_code.tempfile, "gettempdir", lambda: str(found["temporary"]))
    return found


def parts(places):
    return {
        "told": places["told"] / NAME,
        "user": places["user"] / "depthgauge" / NAME,
        "temporary": places["temporary"] / f"depthgauge-{NAME}",
    }


def above_is_safe(path):
    return all(machine_code._keeps_its_folders(parent.lstat()) for parent in path.parents)


@pytest.fixture(autouse=True)
def _safe_above(tmp_path):
    if not above_is_safe(tmp_path / "x"):
        pytest.skip("others may write above the folder for temporary files of this test run")


def test_the_first_good_place_is_taken_and_is_ours_alone(places):
    found = machine_code.folder()
    assert found == parts(places)["told"].resolve()
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert machine_code.folder() == found


def spoil_by_mode(path):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)


def spoil_by_group(path):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o770)


def spoil_by_link(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def spoil_by_parent(path):
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    path.parent.chmod(0o777)


def spoil_by_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def spoil_by_owner(path):
    if os.getuid() != 0:
        pytest.skip("only root gives folders away")
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    os.chown(path, NOBODY, NOBODY)


def spoil_by_owner_above(path):
    if os.getuid() != 0:
        pytest.skip("only root gives folders away")
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    os.chown(path.parent, NOBODY, NOBODY)


SPOILT = [
    spoil_by_mode,
    spoil_by_group,
    spoil_by_link,
    spoil_by_parent,
    spoil_by_file,
    spoil_by_owner,
    spoil_by_owner_above,
]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_place_that_others_reach_is_passed_over(places, spoil):
    own = parts(places)
    for name, then in (("told", own["user"].resolve()), ("user", own["temporary"].resolve()), ("temporary", None)):
        if own[name].exists():
            own[name].rmdir()
        spoil(own[name])
        assert machine_code.folder() == then


def test_a_folder_for_all_where_only_owners_may_rename_will_do(places):
    for place in places.values():
        place.chmod(0o1777)
    assert machine_code.folder() == parts(places)["told"].resolve()


def test_numba_is_told_of_the_folder_for_the_kernels_only(places):
    before = machine_code._config.CACHE_DIR
    with machine_code.kept_in(places["user"]) as kept:
        assert kept
        assert str(places["user"]) == machine_code._config.CACHE_DIR
    with machine_code.kept_in(None) as kept:
        assert not kept
    assert before == machine_code._config.CACHE_DIR


class Broken:
    cache_path = "here"

    def load_overload(self, *_):
        raise EOFError

    def save_overload(self, *_):
        raise OSError(28, "No space left on device")


def test_a_cache_that_is_broken_or_full_is_no_cache():
    cache = machine_code.Forgiving(Broken())
    assert cache.load_overload(1, 2) is None
    assert cache.save_overload(1, 2) is None
    assert cache.cache_path == "here"


class Kept:
    """Machine code on disk, as numba's cache has it."""

    def __init__(self, disk):
        self.disk = disk

    def load_overload(self, signature, _):
        return self.disk.get(signature)

    def save_overload(self, signature, result):
        self.disk[signature] = result


@pytest.mark.parametrize("kept", [True, False])
def test_what_one_process_compiles_another_waits_for_and_loads(tmp_path, kept):
    """Of locks on a file each opening has its own, so that threads stand for processes."""
    disk, found = {}, []
    first, second = (machine_code.Forgiving(Kept(disk), tmp_path) for _ in range(2))
    assert first.load_overload("observe", None) is None
    other = threading.Thread(target=lambda: found.append(second.load_overload("observe", None)))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    if kept:
        first.save_overload("observe", "code")
    else:  # its compilation has failed: the turn is the next one's
        first._turn.close()
    other.join(30)
    assert found == ["code" if kept else None]
    second.save_overload("observe", "code")
    assert first.load_overload("observe", None) == "code"


def test_nobody_waits_where_nothing_is_kept_or_no_lock_is_to_be_had(tmp_path):
    for place in (None, tmp_path / "gone"):
        caches = [machine_code.Forgiving(Kept({}), place) for _ in range(2)]
        assert [cache.load_overload("observe", None) for cache in caches] == [None, None]


# A kernel like the probe's that compiles in a tenth of the time.
KERNEL = """
from depthgauge.probe import blocks

@blocks.entry_point
def double(number):
    return 2 * number
"""
DOUBLES = """
import kernel
assert kernel.double(21) == 42
print(kernel.blocks._FOLDER)
"""

# Python itself may be closed to others, hence all is imported and used once before the privileges are dropped.
DROPS = f"""
import importlib, os, sys, tempfile
import kernel
from depthgauge.probe import blocks, machine_code
kernel.double(1)
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
os.environ.update(HOME=sys.argv[1], XDG_CACHE_HOME=sys.argv[1])
tempfile.tempdir = sys.argv[2]
for module in (machine_code, blocks, kernel):
    importlib.reload(module)
"""


@pytest.fixture
def read_as_nobody(tmp_path):
    """Runs the probe as another user, from a copy of the package that all may read."""
    if os.getuid() != 0:
        pytest.skip("only root becomes somebody else")
    for above in (tmp_path, *tmp_path.parents[:3]):  # pytest's own, and pytest-xdist's
        above.chmod(above.stat().st_mode | 0o055)
    if not all(above.stat().st_mode & 0o001 for above in tmp_path.parents):
        pytest.skip("others may not read the folder for temporary files of this test run")
    shutil.copytree(Path(depthgauge.__file__).parent, tmp_path / "site" / "depthgauge")
    (tmp_path / "site" / "kernel.py").write_text(KERNEL)

    def run(home, temporary):
        arguments = [sys.executable, "-c", DROPS + DOUBLES, str(home), str(temporary)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        ran = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=False, timeout=300, cwd="/"
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    return run


def test_a_user_who_may_write_nowhere_compiles_for_himself(tmp_path, read_as_nobody):
    """Home, site-packages and the folder for temporary files are others', and so is the cache."""
    (tmp_path / "depthgauge" / f"numba-{NOBODY}").mkdir(parents=True, mode=0o777)
    assert read_as_nobody(tmp_path, "/nonexistent") == "None"


def test_a_user_without_a_home_has_a_folder_of_his_own_among_the_temporary_ones(tmp_path, read_as_nobody):
    common = tmp_path / "tmp"
    common.mkdir()
    common.chmod(0o1777)
    found = read_as_nobody("/nonexistent", common)
    assert found == str(common.resolve() / f"depthgauge-numba-{NOBODY}")
    assert Path(found).stat().st_uid == NOBODY
    assert stat.S_IMODE(Path(found).stat().st_mode) == 0o700
    assert list(Path(found).rglob("*.nbc"))


def test_kernels_are_read_where_nothing_can_be_kept(tmp_path):
    """Of the same user, with all three places closed by what lies there."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder would have to be")
    environment = os.environ | {"HOME": str(blocked), "TMPDIR": "/dev/null", "NUMBA_CACHE_DIR": str(blocked)}
    environment.pop("XDG_CACHE_HOME", None)
    (tmp_path / "kernel.py").write_text(KERNEL)
    code = f"import sys, tempfile; tempfile.tempdir = '/dev/null'; sys.path.append({str(tmp_path)!r})\n" + DOUBLES
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "None"


KERNELS = """
import sys, torch
from depthgauge import probe
from depthgauge.probe import blocks, compiled, pairs, session, shuffles
for name in sys.argv[1:]:
    if name == "shuffles" and compiled.VECTORS is None:
        continue
    module = {"pairs": pairs, "shuffles": shuffles}[name]
    session.kernel_for = lambda _device, method=module.METHOD: compiled.CompiledKernel(method)
    for size in (5, 31, 513, 4096, 100_003):
        with probe.track(module := torch.nn.Identity(), directions="activation") as record:
            module(torch.full((size,), 3.0))
        assert record.unread == (), record.unread
        assert record.histogram().count == size
print(blocks._FOLDER)
"""


@pytest.mark.slow
def test_kernels_are_kept_for_later_processes_that_may_load_both():
    """Each of two processes compiles one kernel; the symbols that numba gives them may not meet in a third.

    They are kept where all of this user's are: a new machine, and new code, have none there.
    """
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def files(place):
        return {path: path.stat().st_mtime_ns for path in Path(place).rglob("*.nbc")}

    def read(*names):
        arguments = [sys.executable, "-c", KERNELS, *names]
        ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, (names, ran.stderr)
        return files(ran.stdout.strip())

    assert read("shuffles") or compiled.VECTORS is None
    kept = read("pairs")
    assert kept
    for names in (("shuffles", "pairs"), ("pairs", "shuffles")):
        assert kept.items() <= read(*names).items()  # another test may have added to them


def test_nobody_waits_for_ever_for_a_process_that_was_stopped(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(machine_code, "PATIENCE", 0.1)
    with (tmp_path / ".turn").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with machine_code.turn(tmp_path):
            pass
        with pytest.raises(BlockingIOError), (tmp_path / ".turn").open("ab") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was held all the time
