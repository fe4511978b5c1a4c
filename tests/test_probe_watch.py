"""A watched run: what it computes, what it hands on, and what it tells."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate
from scipy import stats as scipy_stats
from torch import nn
from torch.nn import functional

from depthgauge import probe
from depthgauge.probe import destinations, watching
from depthgauge.probe.alarm import NOTHING, WINDOW, Ranges, discount, e_value, p_value
from depthgauge.probe.destinations import Table

pytestmark = pytest.mark.usefixtures("one_thread")


class Run:
    """A small training whose steps can be spoiled."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.generator = torch.Generator().manual_seed(1)

    def step(self, spoil: bool = False) -> float:
        x = torch.randn(32, 6, generator=self.generator)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(x), x[:, :3].argmax(1))
        loss.backward()
        if spoil:
            self.model[2].weight.grad[0, 0] = math.nan
        self.optimizer.step()
        return loss.item()


@pytest.fixture
def run() -> Run:
    return Run()


# -- what it computes and hands on -------------------------------------------------------------------------------------


def test_the_training_computes_what_it_computed_before(tmp_path: Path) -> None:
    bare, watched = Run(), Run()
    losses = [bare.step() for _ in range(7)]
    with probe.watch(watched.model, watched.optimizer, every=2, to=tmp_path / "run.parquet"):
        assert [watched.step() for _ in range(7)] == losses
    for ours, theirs in zip(watched.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not watched.optimizer._optimizer_step_pre_hooks
    table = pd.read_parquet(tmp_path / "run.parquet")
    assert sorted(table["step"].unique()) == [0, 2, 4, 6]
    weight = table[(table["direction"] == "weight") & (table["layer"] == "4") & (table["parameter"] == "weight")]
    assert len(weight) == 4
    assert np.isfinite(weight["log2_rms"]).all()


def test_rows_are_those_of_the_tensors(run: Run) -> None:
    frames: list[pd.DataFrame] = []
    rms = run.model[0].weight.detach().square().mean().sqrt().log2().item()
    watch = probe.watch(run.model, run.optimizer, every=1, to=[frames.append], last=5)
    watch.start = 100
    run.step()
    assert list(frames[0]["step"].unique()) == [100]
    values = probe.scalars(frames[0])
    assert values["weight/0.weight"] == pytest.approx(rms, abs=1e-5)
    assert values["not_finite"] == 0
    assert {"activation/3", "activation_gradient/0", "update/4.bias"} < values.keys()
    assert len(watch.rows) == 5
    watch.close()
    watch.close()
    run.step()
    assert len(frames) == 1


def test_a_writer_gets_scalars_and_is_not_closed(run: Run) -> None:
    class Writer:
        def __init__(self) -> None:
            self.written: list[tuple[str, int]] = []
            self.flushed = 0

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert math.isfinite(value)
            self.written.append((name, step))

        def flush(self) -> None:
            self.flushed += 1

    writer = Writer()
    with probe.watch(run.model, run.optimizer, every=3, to=writer):
        for _ in range(4):
            run.step()
    assert {step for _, step in writer.written} == {0, 3}
    assert ("weight_gradient/2.weight", 3) in writer.written
    assert writer.flushed == 1


def test_a_logger_that_raises_is_told_of_once_and_the_run_goes_on(run: Run) -> None:
    def full(_: pd.DataFrame) -> None:
        raise OSError("no space left")

    with warnings.catch_warnings(record=True) as caught, probe.watch(run.model, run.optimizer, every=1, to=full):
        warnings.simplefilter("always")
        assert all(math.isfinite(run.step()) for _ in range(4))
    assert [str(each.message) for each in caught] == [
        "rows are written no more: OSError: no space left; the run is still watched"
    ]
    assert caught[0].filename == __file__


def test_what_cannot_be_closed_keeps_no_other_from_it_and_hides_no_exception(run: Run) -> None:
    class Full:
        def add_scalar(self, *_: object) -> None:
            pass

        def flush(self) -> None:
            raise OSError("no space left")

    class Kept:
        closed = 0

        def __call__(self, _: pd.DataFrame) -> None:
            pass

        def close(self) -> None:
            self.closed += 1

    def training(watch: probe.Watch) -> None:
        with watch:
            run.step(spoil=True)
            raise RuntimeError("the user's")

    kept = Kept()
    watch = probe.watch(run.model, run.optimizer, every=1, to=[Full(), kept])
    with warnings.catch_warnings(record=True, action="always") as told:  # noqa: SIM117 - of one statement
        with pytest.raises(RuntimeError, match="the user's") as caught:
            training(watch)
    assert str(told[-1].message) == "the last rows could not be written: OSError: no space left"
    assert kept.closed == 1
    assert caught.value.__notes__ == [f"depthgauge: {watch.first_nonfinite}"]


def test_a_logger_may_do_with_its_rows_what_it_likes(run: Run) -> None:
    frames: list[pd.DataFrame] = []

    def greedy(rows: pd.DataFrame) -> None:
        rows["log2_rms"] = 0.0
        rows.pop("step")

    with probe.watch(run.model, run.optimizer, every=1, to=[greedy, frames.append]) as watch:
        for _ in range(3):
            run.step()
    assert [set(frame["step"]) for frame in frames] == [{0}, {1}, {2}]
    given = pd.concat(frames).tail(len(watch.rows))
    pd.testing.assert_frame_equal(watch.rows.reset_index(drop=True), given.reset_index(drop=True))


def test_an_output_and_a_layer_of_one_name_are_two_figures() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": 1024 * self.logits(x)}

    model, frames = nn.ModuleDict({"head": Head()}), list[pd.DataFrame]()
    with probe.track(model, directions="activation", on_step=lambda record: frames.append(record.to_frame())):
        model["head"](torch.ones(2, 4))
    named = probe.scalars(watching.with_log2_rms(frames[0]))
    assert named["activation/head/logits"] == pytest.approx(named["activation/head.logits"] + 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "run.csv"}, r"ends in \.parquet"),
        ({"to": 3}, "int takes no rows"),
        ({"last": 0}, "keeps no row"),
        ({"every": 0}, "records no step"),
    ],
)
def test_what_cannot_be_is_one_sentence(run: Run, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe.watch(run.model, run.optimizer, **options)
    assert not run.optimizer._optimizer_step_pre_hooks


# -- the first value that is not finite --------------------------------------------------------------------------------


def test_rows_of_earlier_steps_lead_to_the_first_value_that_is_not_finite(run: Run) -> None:
    with probe.watch(run.model, run.optimizer, every=2, last=40) as watch:
        for _ in range(4):
            run.step()
        with pytest.warns(probe.NonFiniteWarning, match="weight gradient of '2.weight' is the first"):
            run.step(spoil=True)
        run.step()  # it is told once
    first = watch.first_nonfinite
    assert first is not None
    assert (first.step, first.layer, first.parameter, first.kind) == (4, "2", "weight", "nan")
    assert len(first.chain) == 40
    assert {2, 4} <= set(first.chain["step"])
    assert first.chain["nans"].iloc[:-1].sum() == 0


def test_an_exception_gets_a_note(run: Run) -> None:
    run.step()
    with torch.no_grad():
        run.model[2].bias[0] = math.inf
    raised = pytest.raises(ZeroDivisionError, match="mine")
    with raised as caught, probe.watch(run.model, run.optimizer, every=1):
        run.model(torch.zeros(1, 6))
        raise ZeroDivisionError("mine")
    assert "the activation of '2' is the first tensor that is not finite" in caught.value.__notes__[0]


def test_an_exception_is_not_hidden_by_a_warning(run: Run) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"), probe.watch(run.model, run.optimizer):
        raise ZeroDivisionError("mine")  # before any call: closing would warn of that


def test_calls_of_the_model_are_steps_without_an_optimizer(run: Run) -> None:
    frames: list[pd.DataFrame] = []
    with probe.watch(run.model, every=2, to=frames.append):
        for _ in range(3):
            run.model(torch.zeros(2, 6)).sum().backward()
    assert [list(frame["step"].unique()) for frame in frames] == [[0], [2]]
    assert set(frames[0]["direction"]) == {"activation", "activation_gradient", "weight", "weight_gradient"}


def test_several_optimizers_make_one_step(run: Run) -> None:
    frames: list[pd.DataFrame] = []
    halves = [torch.optim.SGD(run.model[part].parameters(), lr=0.1) for part in (0, 2)]
    with probe.watch(run.model, halves, every=1, to=frames.append):
        for _ in range(2):
            run.model(torch.ones(2, 6)).sum().backward()
            for half in halves:
                half.step()
    assert [list(frame["step"].unique()) for frame in frames] == [[0], [1]]


# -- the alarm ---------------------------------------------------------------------------------------------------------


def test_the_alarm_names_the_layer_that_changed_and_since_when(run: Run) -> None:
    told: list[probe.Alarm] = []
    with probe.watch(run.model, run.optimizer, every=1, alarm=told.append) as watch:
        for step in range(WINDOW + 30):
            if step == WINDOW + 20:
                assert not told
                with torch.no_grad():
                    run.model[2].weight.mul_(30)
            run.step()
    assert len(told) == 1
    assert (told[0].layer, told[0].since) == ("2", WINDOW + 20)
    assert told[0].step <= WINDOW + 26
    assert 10 < told[0].now / told[0].before < 60
    assert watch.alarms == told


def test_an_alarm_is_a_warning_at_the_users_line(run: Run) -> None:
    with probe.watch(run.model, run.optimizer) as watch:
        alarm = probe.Alarm(40, 38, "weight_gradient", "blocks.3", "weight", 0.5, 64.0, ("blocks.3", "head"))
        run.step()
        text = (
            r"weight gradient of blocks\.3\.weight left its range first, in step 38.*was 0\.5 and is 64; 1 more layer"
        )
        with pytest.warns(probe.AlarmWarning, match=text):
            watch._raise(alarm)


def test_a_model_in_evaluation_mode_raises_no_alarm_and_that_is_said_once(run: Run) -> None:
    run.model.eval()
    with probe.watch(run.model, run.optimizer, every=1, layers="0"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(WINDOW - 1):
                run.step()
        with pytest.warns(UserWarning, match=f"no layer was in training mode in {WINDOW} recorded steps"):
            run.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(WINDOW):
                run.step()


def test_p_and_e_values_are_those_of_their_laws() -> None:
    distance = np.array([0.0, 0.3, 2.0, 15.0, 1e4])
    np.testing.assert_allclose(p_value(distance), 2 * scipy_stats.t(4).sf(distance), rtol=1e-9)
    assert integrate.quad(lambda u: float(e_value(np.exp(-u))) * math.exp(-u), 0, 600)[0] == pytest.approx(
        1 - 1 / 600, abs=2e-3
    )  # the tail beyond p = e^-600 holds 1 / 600 of the mean
    kappa = np.linspace(0, 1, 20_001)
    for p in (1e-6, 0.01, 0.5, 0.9999):
        mixture = integrate.trapezoid(kappa * p ** (kappa - 1), kappa)
        assert float(e_value(np.float64(p))) == pytest.approx(mixture, rel=1e-3)


def test_correlated_values_count_for_less() -> None:
    rng = np.random.default_rng(0)
    white = rng.standard_normal((200, WINDOW))
    walk = white.cumsum(axis=1)
    shares = [discount(x - np.median(x, axis=1, keepdims=True)) for x in (white, walk)]
    assert shares[0].mean() > 0.85
    assert shares[1].mean() < 0.3


def _observed(figures: np.ndarray, mean_steps: float) -> list[probe.Alarm]:
    ranges = Ranges(mean_steps)
    names = [("activation", str(layer), "", "") for layer in range(figures.shape[1])]
    told = (ranges.observe(step, names, row) for step, row in enumerate(figures))
    return [alarm for alarm in told if alarm is not None]


def test_false_alarms_are_as_rare_as_stated() -> None:
    figures = 2.0 * np.random.default_rng(3).standard_normal((2500, 20))
    # 25 at most on average; three standard deviations of a Poisson count above it
    assert len(_observed(figures, 100)) <= 25 + 3 * 5
    assert not _observed(figures, 100_000)


def test_one_batch_or_one_layer_of_zeros_once_is_no_change() -> None:
    figures = 0.1 * np.random.default_rng(4).standard_normal((300, 5))
    figures[::50] += 8
    figures[170, 2] = -np.inf
    assert not _observed(figures, 1000)
    figures[200:, 3] = -np.inf  # a layer that dies
    (alarm,) = _observed(figures, 1000)
    assert (alarm.layer, alarm.since, alarm.now) == ("3", 200, 0.0)
    assert NOTHING < -149  # below the least float32 above zero


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "SECONDS", 0.0)
    monkeypatch.setattr(destinations, "FANOUT", 4)


def _rows(step: int) -> pd.DataFrame:
    return pd.DataFrame({"step": [step], "parameter": [None], "output": [None], "log2_rms": [0.5]})


@pytest.mark.usefixtures("_at_once")
def test_a_table_can_be_read_at_any_time_and_has_few_files(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    table = Table(path)
    for step in range(40):
        table(_rows(step))
        if step in {0, 3, 4, 15, 16, 39}:
            assert pd.read_parquet(path)["step"].tolist() == list(range(step + 1))
    assert len(list(path.iterdir())) == 2 + 2  # 16, 16, 4 and 4 rows


@pytest.mark.usefixtures("_at_once")
def test_what_a_crash_left_is_mended_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    table = Table(path)
    for step in range(16):
        table(_rows(step))
    (joined,) = path.glob("*.parquet")
    (path / "000000003-000000003.parquet").write_bytes(joined.read_bytes())  # joined, and not deleted yet
    (path / ".16.writing").write_bytes(b"half")
    again = Table(path)
    again(_rows(99))
    assert pd.read_parquet(path)["step"].tolist() == [*range(16), 99]
    assert not (path / ".16.writing").exists()


@pytest.mark.usefixtures("_at_once")
def test_two_watches_may_share_a_table(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    one, other = Table(path), Table(path)
    for step in range(6):
        one(_rows(step))
        other(_rows(100 + step))
    assert sorted(pd.read_parquet(path)["step"]) == [*range(6), *range(100, 106)]


@pytest.mark.usefixtures("_at_once")
def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.mkdir()
    others = {path / name for name in ("2024-01.parquet", "2024-02.parquet", "2024-01-05.parquet")}
    for each in others:
        each.write_bytes(b"theirs")
    table = Table(path)
    for step in range(5):
        table(_rows(step))
    assert {each for each in others if each.read_bytes() == b"theirs"} == others
    assert len(list(path.iterdir())) == len(others) + 2


def test_a_file_in_the_place_of_a_table_is_told_and_a_watch_that_does_not_begin_makes_none(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file.parquet").write_bytes(b"theirs")
    hooks = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(ValueError, match=r"file\.parquet' is a file, and the table is a folder of files"):
        probe.watch(run.model, run.optimizer, to=tmp_path / "file.parquet")
    with pytest.raises(ValueError, match="no layer matches 'nowhere'"):
        probe.watch(run.model, run.optimizer, to=tmp_path / "run.parquet", layers="nowhere")
    assert [each.name for each in tmp_path.iterdir()] == ["file.parquet"]
    assert len(nn.modules.module._global_forward_hooks) == hooks


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"every": "10"}, "every='10'"), ({"every": 2.5}, "every=2.5"), ({"alarm": 3}, "alarm=3")],
)
def test_wrong_arguments_of_a_watch_end_in_a_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        probe.watch(nn.Linear(2, 2), **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not a function"):
        probe.watch(lambda x: x)  # type: ignore[arg-type]
