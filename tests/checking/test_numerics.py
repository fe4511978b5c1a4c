"""The fixture `numerics`, as a user's test suite has it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import depthgauge
from depthgauge.checking import Answer, Checked, Finding, Status
from depthgauge.drifting import Verdict
from depthgauge.numerics import Numerics, Soundness
from depthgauge.workload import Training

SEEDS = tuple(range(8))


@pytest.fixture
def fixture(tmp_path: Path) -> Numerics:
    return Numerics(tmp_path / "numerics" / "test_mine", update=False)


@pytest.fixture
def storing(tmp_path: Path) -> Numerics:
    return Numerics(tmp_path / "numerics" / "test_mine", update=True)


def _anew(storing: Numerics) -> Numerics:
    """The fixture of another session."""
    return Numerics(storing._folder, update=True)


# -- check -------------------------------------------------------------------------------------------------------------


def _checked(*answers: Answer) -> Soundness:
    return Soundness(Checked(answers, 10.0))


FINE = Answer("batch", "Which batch?", "the batch is fine")
OPEN = Answer("cost", "What does it cost?", "no time", (Finding("not_measured", Status.UNDECIDED, "no time"),))
LOOKED_AT = Answer("data", "Is it?", "labels are few", (Finding("few", Status.LOOK, "labels are few"),))
BROKEN = Answer(
    "signal", "Does it reach?", "no", (Finding("no_gradient", Status.BROKEN, "head has no gradient", "register head"),)
)


def test_a_sound_training_passes() -> None:
    _checked(FINE, LOOKED_AT, OPEN).assert_sound()
    _checked(FINE, BROKEN).assert_sound(allow="no_gradient")
    _checked(FINE, BROKEN).assert_sound(allow=["signal"])


def test_a_broken_one_fails_with_what_to_do_and_the_card() -> None:
    with pytest.raises(AssertionError) as caught:
        _checked(FINE, BROKEN).assert_sound(allow=["few"])
    first, *rest = str(caught.value).splitlines()
    assert first == "signal: head has no gradient Do: register head"
    assert any("the batch is fine" in line for line in rest)


def test_what_was_not_measured_is_no_success() -> None:
    with pytest.raises(AssertionError, match="nothing could be measured: no time"):
        _checked(OPEN).assert_sound()
    with pytest.raises(AssertionError, match="cost is undecided: no time"):
        _checked(FINE, OPEN).assert_sound(undecided=False)
    _checked(FINE, OPEN).assert_sound(undecided=False, allow=["cost"])


def test_a_training_is_checked(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    numerics = Numerics(tmp_path, update=False, note=lambda *text: told.append(text))

    def loss(*_: Any) -> torch.Tensor:
        raise RuntimeError("labels of another shape")

    found = numerics.check(Training(nn.Linear(2, 2), [torch.zeros(4, 2)], loss), only=["data"])
    with pytest.raises(AssertionError, match=r"^data: .*labels of another shape"):
        found.assert_sound()
    assert "labels of another shape" in told[0][1]


# -- two versions ------------------------------------------------------------------------------------------------------


def test_two_versions_are_the_same_within_rounding_or_the_layer_is_named(fixture: Numerics) -> None:
    torch.manual_seed(0)
    old = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    new = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    new.load_state_dict(old.state_dict())
    x = torch.randn(32, 8)
    fixture.assert_same(old, new.double(), x)
    with torch.no_grad():
        new[2].weight.mul_(1.001)
    with pytest.raises(AssertionError, match=r"^2 differs forward(.|\n)*band"):
        fixture.assert_same(old, new, x)


# -- drift -------------------------------------------------------------------------------------------------------------


def _loss(seed: int, shift: float = 0.0) -> float:
    return 1.0 + 0.1 * (seed * 7 % 5) + shift


def test_a_drift_is_different_same_or_inconclusive(fixture: Numerics, storing: Numerics) -> None:
    with pytest.raises(FileNotFoundError, match="run pytest --numerics-update"):
        fixture.drift("loss", _loss, margin=0.02)
    stored = storing.drift("loss", _loss, seeds=SEEDS, margin=0.02)
    assert stored.verdict is Verdict.STORED
    stored.assert_same()
    assert json.loads(stored.path.read_text())["figures"]["value"] == [_loss(seed) for seed in SEEDS]

    same = fixture.drift("loss", lambda seed: _loss(seed, 0.001 * (seed % 2)), margin=0.02)
    assert same.verdict is Verdict.SAME
    same.assert_same()

    different = fixture.drift("loss", lambda seed: _loss(seed, 0.05 + 0.001 * seed), margin=0.02)
    assert different.verdict is Verdict.DIFFERENT
    for judge in (different.assert_same, different.assert_not_different):
        with pytest.raises(AssertionError, match=r"^different from(.|\n)*margin 0\.02(.|\n)*--numerics-update"):
            judge()

    noisy = fixture.drift("loss", lambda seed: _loss(seed, 0.1 * (-1) ** seed + 0.01), margin=0.02)
    assert noisy.verdict is Verdict.INCONCLUSIVE
    noisy.assert_not_different()
    with pytest.raises(AssertionError, match="inconclusive"):
        noisy.assert_same()


def test_several_figures_are_one_family_and_factors_are_margins(fixture: Numerics, storing: Numerics) -> None:
    def figures(seed: int, factor: float = 1.0) -> dict[str, float]:
        return {"loss": _loss(seed), "norm": factor * (1 + 0.01 * seed)}

    storing.drift("two", figures, ratio=1.05)
    drift = fixture.drift("two", lambda seed: figures(seed, 1.2 + 0.001 * seed), ratio=1.05)
    assert {name: each.beyond for name, each in drift.comparisons.items()} == {"loss": False, "norm": True}
    assert {each.family for each in drift.comparisons.values()} == {2}
    assert re.search(r"loss: same.*\n.*norm: different", str(drift))


def test_too_few_seeds_settle_nothing_and_say_how_many_would(fixture: Numerics, storing: Numerics) -> None:
    storing.drift("few", _loss, seeds=range(3), margin=0.02)
    drift = fixture.drift("few", lambda seed: _loss(seed, 5.0), seeds=range(3), margin=0.02)
    assert drift.verdict is Verdict.INCONCLUSIVE
    assert "it takes at least 6 seeds" in str(drift)


def test_other_seeds_are_compared_unpaired(fixture: Numerics, storing: Numerics) -> None:
    storing.drift("seeds", _loss, seeds=range(10), margin=0.02)
    drift = fixture.drift("seeds", lambda seed: _loss(seed, 3.0), seeds=range(20, 30), margin=0.02)
    assert drift.verdict is Verdict.DIFFERENT


def test_not_finite_is_a_result(fixture: Numerics, storing: Numerics) -> None:
    storing.drift("nan", lambda seed: float("nan") if seed == 3 else 1.0, margin=0.1)
    assert fixture.drift("nan", lambda _: 1.0, margin=0.1).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loss", {}, "declared margin"),
        ("loss", {"margin": 0.1, "ratio": 1.1}, "declared margin"),
        ("loss", {"margin": 0.1, "seeds": [1, 1]}, "different whole numbers"),
        ("a/b?", {"margin": 0.1}, "is no name of a file"),
        ("", {"margin": 0.1}, "'' is no name of a file"),
    ],
)
def test_wrong_use_is_one_sentence(storing: Numerics, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        storing.drift(name, _loss, **options)


def test_a_file_that_is_no_baseline_is_told_of(fixture: Numerics, storing: Numerics) -> None:
    path = storing.drift("loss", _loss, margin=0.1).path
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is no baseline"):
        fixture.drift("loss", _loss, margin=0.1)
    _anew(storing).drift("loss", lambda seed: {"other": float(seed)}, margin=0.1)
    with pytest.raises(ValueError, match="holds other, and now there are value: store them anew"):
        fixture.drift("loss", _loss, margin=0.1)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"versions": None}, "NoneType"),
        ({"figures": {"value": [None] * 8}}, "NoneType"),
        ({"figures": {"value": ["low"] * 8}}, "could not convert"),
        ({"seeds": None}, "NoneType"),
        ("versions", "it has no 'versions'"),
    ],
)
def test_a_damaged_baseline_is_told_before_anything_is_measured(
    fixture: Numerics, storing: Numerics, damage: dict[str, Any] | str, told: str
) -> None:
    path = storing.drift("loss", _loss, margin=0.1).path
    document = json.loads(path.read_text())
    if isinstance(damage, str):
        del document[damage]
    else:
        document |= damage
    path.write_text(json.dumps(document))
    asked: list[int] = []
    with pytest.raises(ValueError, match=f"is no baseline: .*{told}.*; pytest --numerics-update stores a new one"):
        fixture.drift("loss", asked.append, margin=0.1)  # type: ignore[arg-type]  # it is never asked
    assert not asked


def test_names_are_compared_after_the_first_seed(fixture: Numerics, storing: Numerics) -> None:
    asked: list[int] = []

    def figures(seed: int) -> dict[str, float]:
        asked.append(seed)
        return {"loss": _loss(seed), "norm": 1.0}

    for numerics in (storing, fixture):
        with pytest.raises(ValueError, match=r"margin has no norm, which make\(seed\) gives: it has loss"):
            numerics.drift("two", figures, margin={"loss": 0.1})
        _anew(storing).drift("two", lambda seed: {"loss": _loss(seed), "norm": 1.0}, margin=0.1)
    _anew(storing).drift("two", lambda seed: {"loss": float(seed)}, margin=0.1)
    with pytest.raises(ValueError, match="holds loss, and now there are loss, norm"):
        fixture.drift("two", figures, margin=0.1)
    assert asked == [0, 0, 0]


def test_names_are_those_of_the_file_whatever_they_were(fixture: Numerics, storing: Numerics) -> None:
    def figures(seed: int) -> dict[int, float]:
        return {0: _loss(seed), 1: 1.0}

    storing.drift("layers", figures, margin={0: 0.1, 1: 0.2})  # type: ignore[arg-type, dict-item]  # as users have it
    found = fixture.drift("layers", figures, margin={0: 0.1, 1: 0.2})  # type: ignore[arg-type, dict-item]
    assert {name: each.margin for name, each in found.comparisons.items()} == {"0": 0.1, "1": 0.2}


@pytest.mark.parametrize("made", [None, {}, [1.0, 2.0], "low", torch.zeros(2), {"loss": None}, 10**400])
def test_what_is_no_figure_is_stored_nowhere_and_told(storing: Numerics, made: Any) -> None:
    with pytest.raises(
        ValueError, match=r"make\(0\) gives .* where a number belongs, or a mapping of names to numbers"
    ):
        storing.drift("loss", lambda _: made, margin=0.1)
    assert not storing._folder.exists()


def test_figures_without_a_ratio_are_named(storing: Numerics) -> None:
    with pytest.raises(ValueError, match="ratio= takes figures above zero, and low is 0: give margin= in its place"):
        storing.drift("loss", lambda seed: {"low": float(seed), "high": _loss(seed)}, ratio=1.1)
    assert not storing._folder.exists()


def test_a_margin_that_is_none_is_told_with_the_figure(fixture: Numerics, storing: Numerics) -> None:
    storing.drift("loss", _loss, margin=-1.0)
    with pytest.raises(ValueError, match=r"value cannot be held against .*loss\.json: a margin is a size"):
        fixture.drift("loss", _loss, margin=-1.0)


def test_a_baseline_that_cannot_be_written_is_one_sentence(storing: Numerics) -> None:
    storing._folder.parent.mkdir()
    storing._folder.write_text("a file")
    with pytest.raises(OSError, match=r"the baseline .*loss\.json cannot be written: File exists"):
        storing.drift("loss", _loss, margin=0.1)


def test_no_test_stores_the_baseline_of_another(tmp_path: Path) -> None:
    stored: dict[Path, str] = {}

    def numerics(test: str) -> Numerics:
        return Numerics(tmp_path / "test_mine", update=True, test=test, stored=stored)

    first = numerics("test_loss[1]")
    path = first.drift("loss", _loss, margin=0.1).path
    kept = path.read_text()
    with pytest.raises(ValueError, match=r"loss.json was stored just now by test_loss\[1\]: give each baseline a name"):
        first.drift("loss", lambda _: 7.0, margin=0.1)
    with pytest.raises(ValueError, match=r"was stored just now by test_loss\[1\]"):
        numerics("test_loss[2]").drift("loss", lambda _: 7.0, margin=0.1)
    assert path.read_text() == kept
    numerics("test_loss[1]").drift("loss", _loss, margin=0.1)  # run again, as a flaky test is


# -- the plugin --------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which pytest finds the plugin, as where the wheel is installed."""
    paths = [str(Path(depthgauge.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = importlib.metadata.entry_points(group="pytest11", value="depthgauge.pytest_plugin")
    if not found:
        folder = tmp_path / "site" / "plugin_of_depthgauge-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Name: plugin-of-depthgauge\nVersion: 1\n")
        (folder / "entry_points.txt").write_text("[pytest11]\ndepthgauge = depthgauge.pytest_plugin\n")
        (folder / "RECORD").write_text("depthgauge/__init__.py,,\n")
        paths.insert(0, str(folder.parent))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": ""}


def _pytest(folder: Path, environment: dict[str, str], text: str, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "test_users.py").write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words, str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=120
    )


def test_a_suite_that_does_not_use_it_imports_none_of_it(tmp_path: Path, installed: dict[str, str]) -> None:
    text = """
        import sys

        def test_nothing_but_the_plugin_is_there():
            ours = {name for name in sys.modules if name.startswith("depthgauge")}
            assert ours == {"depthgauge", "depthgauge.version", "depthgauge.pytest_plugin"}
            assert not {"torch", "pandas", "scipy"} & set(sys.modules)

        def test_assertions_of_the_package_are_not_rewritten():
            import depthgauge.topics
            assert not type(depthgauge.topics.__spec__.loader).__module__.startswith("_pytest")
    """
    done = _pytest(tmp_path / "suite", installed, text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_a_suite_that_uses_it_stores_a_baseline_and_shows_what_was_found(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    text = """
        import os

        def test_drift(numerics):
            numerics.drift("loss", lambda seed: seed + float(os.environ["SHIFT"]), margin=0.1).assert_same()
    """
    suite = tmp_path / "suite"
    stored = _pytest(suite, {**installed, "SHIFT": "0"}, text, "--numerics-update")
    assert stored.returncode == 0, stored.stdout + stored.stderr
    assert (suite / "numerics" / "test_users" / "loss.json").is_file()
    moved = _pytest(suite, {**installed, "SHIFT": "1"}, text)
    assert moved.returncode == 1
    assert re.search(r"E +AssertionError: different from .*loss\.json", moved.stdout)
    assert "drifting.py" not in moved.stdout  # the frame that is shown is the user's
    missing = _pytest(tmp_path / "other", {**installed, "SHIFT": "0"}, text)
    assert "no baseline" in missing.stdout
    assert "drifting.py" not in missing.stdout
    twice = """
        import pytest

        @pytest.mark.parametrize("shift", [0, 100])
        def test_drift(numerics, shift):
            numerics.drift("loss", lambda seed: seed + shift, margin=0.1)
    """
    both = _pytest(tmp_path / "both", installed, twice, "--numerics-update")
    assert "1 failed, 1 passed" in both.stdout
    assert re.search(r"ValueError: .*loss\.json was stored just now by .*test_drift\[0\]", both.stdout)
