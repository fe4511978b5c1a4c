import subprocess
import sys
from pathlib import Path

import pytest

from depthgauge import environment
from depthgauge.environment import DeviceError


def test_the_fingerprint_tells_what_numbers_depend_on_and_where_they_were_made():
    here = environment.fingerprint("cpu")
    assert set(environment.identity("cpu")) < set(here)
    assert here["device"] == "cpu"
    assert here["threads"] == 1
    assert here["python"] == sys.version.split()[0]
    assert {"depthgauge", "source", "commit", "torch", "numpy", "cpu", "cores", "memory_gib", "system"} <= set(here)
    assert len(here["source"]) == 64
    assert here["cores"] >= 1
    assert here["memory_gib"] > 0


def test_equal_environments_differ_in_nothing_and_others_by_name():
    here = environment.fingerprint("cpu")
    assert environment.differences(here, dict(here)) == ()
    moved = {**here, "commit": "another", "cores": 1, "memory_gib": 0.5, "system": "Plan 9"}
    assert environment.differences(here, moved) == ()
    other = {**here, "torch": "0.1", "source": "f" * 64}
    assert environment.differences(here, other) == (
        f"source {here['source'][:8]} -> ffffffff",
        f"torch {here['torch']} -> 0.1",
    )
    assert environment.differences({}, here)[0] == f"depthgauge None -> {here['depthgauge']}"


def test_the_source_covers_what_makes_numbers_and_not_what_shows_them():
    names = set(environment._modules())
    assert {"depthgauge/study.py", "depthgauge/worker.py", "depthgauge/models/__init__.py"} <= names
    assert "depthgauge/studies/__init__.py" in names
    assert not [name for name in names if name.startswith(("depthgauge/reports", "depthgauge/cli"))]


def test_a_digest_depends_on_names_and_contents_alone(tmp_path):
    def digest(folder, **files):
        paths = {}
        for name, text in files.items():
            paths[name] = tmp_path / folder / name
            paths[name].parent.mkdir(exist_ok=True)
            paths[name].write_text(text)
        return environment.digest(paths)

    first = digest("one", a="x", b="y")
    assert digest("two", b="y", a="x") == first
    assert digest("one", a="x", b="z") != first
    assert digest("one", a="y", b="x") != first
    assert digest("one", a="x", c="y") != first


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cudo", "there is no device 'cudo'; did you mean 'cuda'"),
        ("cpu:0", "there is no device 'cpu:0'; did you mean 'cpu'"),
        ("cuda:", "there is no device 'cuda:'; did you mean 'cuda"),
        ("cuda:x", "there is no device 'cuda:x'; did you mean"),
        ("banana", "there is no device 'banana'; use cpu, cuda, cuda:1 or auto"),
    ],
)
def test_a_device_that_is_misspelt_is_named_with_the_nearest(wanted, message):
    with pytest.raises(DeviceError, match=message):
        environment.device(wanted)


def test_devices(monkeypatch):
    import torch

    assert environment.device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.device("auto") == "cpu"
    with pytest.raises(DeviceError, match="device 'cuda:1' needs CUDA"):
        environment.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert environment.device("auto") == "cuda"
    assert environment.device("cuda:0") == "cuda:0"
    with pytest.raises(DeviceError, match=r"no device 'cuda:1': this machine has 1 CUDA device"):
        environment.device("cuda:1")


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), (None, 8)]
)
def test_cores_respect_a_containers_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(environment, "_control_group", lambda _: quota)
    assert environment.cores() == expected


@pytest.mark.parametrize(
    ("control", "available"),
    [
        ({"memory.max": "max", "memory.current": "5"}, 2**20 * 1024),
        ({}, 2**20 * 1024),
        ({"memory.max": str(2**29), "memory.current": str(2**28), "memory.stat": "anon 7\ninactive_file 1024"},
         2**28 + 1024),
        ({"memory.max": str(2**40), "memory.current": "0"}, 2**20 * 1024),
        ({"memory.max": "10", "memory.current": "20"}, 0),
    ],
)  # fmt: skip
def test_available_memory_is_the_least_of_machine_and_container(monkeypatch, control, available):
    meminfo = "MemTotal:  4194304 kB\nMemFree:  7 kB\nMemAvailable:  1048576 kB\n"
    monkeypatch.setattr(environment, "_control_group", control.get)
    monkeypatch.setattr(environment.Path, "read_text", lambda path: {"/proc/meminfo": meminfo}[str(path)])
    assert environment.available_memory() == available


def test_memory_respects_a_containers_limit(monkeypatch):
    monkeypatch.setattr(environment, "_control_group", lambda _: str(2**29))
    assert environment.memory_gib() == 0.5


def test_a_copy_outside_a_repository_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(environment.version, "__file__", str(Path(tmp_path) / "__init__.py"))
    environment.commit.cache_clear()
    try:
        assert environment.commit() is None
    finally:
        environment.commit.cache_clear()


def test_links_into_a_checkout_have_its_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    for asked in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *asked], check=True)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "__init__.py").symlink_to(tmp_path / "package" / "__init__.py")
    monkeypatch.setattr(environment.version, "__file__", str(tmp_path / "build" / "__init__.py"))
    environment.commit.cache_clear()
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
        assert environment.commit() == head.strip()
    finally:
        environment.commit.cache_clear()
