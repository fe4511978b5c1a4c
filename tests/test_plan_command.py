"""`depthgauge plan`: a table, JSON, and one sentence for what is wrong."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from depthgauge.cli import main

Call = Callable[..., Result]

TRAINING = """
    import torch
    from depthgauge import Training
    from torch import nn

    def make():
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(8, 1)
        batches = [{"x": torch.randn(16, 8, generator=generator), "y": torch.ones(16, 1)} for _ in range(16)]
        print("made")
        return Training(
            model, batches, lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean(),
            torch.optim.Adam(model.parameters(), lr=0.01),
        )

    def module(input_shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes))

    def weightless():
        return nn.Flatten()

    def broken():
        return Training(nn.Linear(8, 1), [torch.ones(4, 3)])
"""
FAST = ("--warm", "2", "--examples", "64")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """`depthgauge ...` in this process, beside a file of factories."""
    (tmp_path / "planned_nets.py").write_text(textwrap.dedent(TRAINING))
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield lambda *words: CliRunner().invoke(main, words, prog_name="depthgauge")
    torch.set_num_threads(before)


def sentence(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line.removeprefix("depthgauge: ")


def test_a_model_on_a_data_set_is_a_table_and_a_line(call: Call) -> None:
    result = call("plan", "softmax_regression", "--data", "digits", "--batches", "16,128", "--devices", "1,4", *FAST)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["batch", "devices", "steps", "examples", "seconds"]
    assert [line.split()[:2] for line in lines[1:5]] == [["16", "1"], ["16", "4"], ["128", "1"], ["128", "4"]]
    assert any(line.startswith("From batch 32 to 128") for line in lines)
    assert any("no link was given" in line for line in lines)


def test_a_training_of_ones_own_as_json(call: Call) -> None:
    result = call("plan", "planned_nets:make", "--batches", "16,64", "--steps", "500", "--json", *FAST)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)  # what the factory prints stands on stderr
    assert (found["batch"], found["steps"], found["learning_rate"], found["rule"]) == (16, 500, 0.01, "square root")
    first, last = found["rows"]
    assert found["notes"][0].startswith("The noise scale was measured up to step 2")
    assert first["steps"] == first["steps_low_95"] == 500
    assert last["learning_rate"] == pytest.approx(0.01 * (first["steps"] / last["steps"]) ** 0.5)
    assert [point["step"] for point in found["noise"]] == [0, 1, 2]
    assert found["advice"].startswith("From batch 16 to 64")


def test_devices_cost_hours_and_are_marked_as_extrapolated(call: Call) -> None:
    words = ("planned_nets:make", "--batches", "16,64", "--devices", "1,8", "--link", "100gbe", *FAST)
    result = call("plan", *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:6] == ["batch", "devices", "steps", "examples", "seconds", "device-hours"]
    assert [line.split()[:3] for line in (lines[2], lines[4])] == [["16", "8", "*"], ["64", "8", "*"]]
    assert not any("*" in lines[row] for row in (0, 1, 3))
    assert "* extrapolated" in lines
    assert any(line.startswith("Fastest on 1 device batch ") for line in lines)
    assert any(line.startswith("Extrapolated: rows on 8 devices were not run") for line in lines)
    found = json.loads(call("plan", *words, "--json").stdout)
    assert [row["extrapolated"] for row in found["rows"]] == [False, True, False, True]
    assert all(
        row["device_hours_low_95"] <= row["device_hours"] <= row["device_hours_high_95"] for row in found["rows"]
    )


def test_a_module_of_ones_own_takes_the_options_of_a_training(call: Call) -> None:
    words = ("planned_nets:module", "--data", "digits", "--optimizer", "momentum", "--lr", "0.02", "--batch", "8")
    result = call("plan", *words, "--batches", "8", "--json", *FAST)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["batch"], found["learning_rate"]) == (8, 0.02)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("resnet19",), 2, "there is no model 'resnet19'; did you mean 'resnet18'?"),
        (("mlp", "--batches", "16,x"), 2, "Invalid value for '--batches': '16,x' is not a list of whole numbers"),
        (("mlp", "--batches", "0"), 2, "Invalid value for '--batches': '0' is not a list"),
        (("mlp", "--devices", ",".join(map(str, range(1, 70)))), 2, "Invalid value for '--devices': there are 69"),
        (("mlp", "--link", "string"), 2, "Invalid value for '--link': 'string' is no link: name one of nvlink, pcie, "),
        (("mlp", "--data", "nosuch"), 2, "no data set 'nosuch'"),
        (("mlp", "--data", "linear"), 2, "linear has no images of classes"),
        (("mlp", "--preset", "huge"), 2, "model 'mlp' has no preset 'huge'"),
        (("mlp", "--device", "tpu"), 2, "there is no device 'tpu'"),
        (("mlp", "--data", "digits", "--batch", "99999"), 2, "--batch 99999 is more than the 1,442 examples of digits"),
        (("transformer",), 2, "transformer takes tokens, for which there is no data here: name a factory"),
        (("planned_nets:make", "--lr", "0.1"), 2, "planned_nets:make makes a Training, which has its own: leave --lr"),
        (("planned_nets:weightless",), 1, "planned_nets:weightless has no parameter that trains: there is nothing to"),
        (("planned_nets:broken",), 1, "planned_nets:broken cannot be planned: a step of the training cannot be run"),
        (("planned_nets:make", "--batches", "3", "--devices", "2"), 1, "planned_nets:make cannot be planned: no batch"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(call: Call, words: tuple[str, ...], code: int, told: str) -> None:
    assert sentence(call("plan", *words), code).startswith(told)
