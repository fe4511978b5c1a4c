"""`depthgauge check`: the card, its files and exit codes, and the first minute of a new user."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from depthgauge import checking
from depthgauge.checking import Answer, Finding, Kind, Measure, Question, Status, asking
from depthgauge.checking.answers import undecided
from depthgauge.cli import main, output

Call = Callable[..., Result]

TRAININGS = """
    import torch
    from depthgauge import Training
    from torch import nn

    def data():
        return [(torch.randn(8, 20), torch.randint(5, (8,))) for _ in range(3)]

    def setup():
        print("made")
        model = nn.Linear(20, 5)
        return Training(model, data(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    def needs(width):
        return nn.Linear(width, 2)

    def raises():
        raise KeyError("nothing there")

    def other():
        return 3

    def module():
        return nn.Linear(20, 5)

    class Net(nn.Sequential):
        example_input_array = torch.zeros(4, 20)

        def __init__(self):
            super().__init__(nn.Linear(20, 5))

    def vector():
        return Training(nn.Linear(20, 5), data(), lambda model, batch: model(batch[0]).square().mean(1))

    def number():
        return Training(nn.Linear(20, 5), data(), lambda model, batch: model(batch[0]).square().mean().item())

    def elsewhere():
        return Training(nn.Linear(20, 5), [(x.to("meta"), y.to("meta")) for x, y in data()])

    def doubled():
        return Training(nn.Linear(20, 5), [(x.double(), y) for x, y in data()])

    def narrow():
        return Training(nn.Linear(10, 5), data())

    def mapping():
        return Training(nn.Linear(20, 5), [{"x": x, "labels": y} for x, y in data()])

    def detached():
        return Training(nn.Linear(20, 5), data(), lambda model, batch: model(batch[0]).detach().mean())

    training = Training(nn.Linear(20, 5), data())
"""


def _statuses(*statuses: Status) -> tuple[Question, ...]:
    """Questions that answer so, the first with what it was given in its sentence."""

    def question(name: str, status: Status) -> Question:
        def ask(subject: Any) -> Answer:
            told = f"{subject.budget:g} s, {subject.training.model}"
            found = () if status is Status.FINE else (Finding("planted", status, f"It is {status}."),)
            return Answer(name, f"{name}?", told, found, Measure("figure", 1.0, 0.9, 1.1, "s"))

        return Question(name, f"{name}?", ask, 1.0, {"planted": Kind("fault", "planted")})

    return tuple(question(name, status) for name, status in zip(("signal", "data"), statuses, strict=True))


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """`depthgauge check ...` in this process, beside a file of factories."""
    (tmp_path / "checked_nets.py").write_text(textwrap.dedent(TRAININGS))
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield lambda *words: CliRunner().invoke(main, ("check", *words), prog_name="depthgauge")
    torch.set_num_threads(before)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the questions answer."""

    def set_to(*statuses: Status) -> None:
        monkeypatch.setattr(asking, "named", lambda _: _statuses(*statuses))

    return set_to


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((Status.FINE, Status.LOOK), 0),
        ((Status.UNDECIDED, Status.BROKEN), 3),
        ((Status.UNDECIDED, Status.LOOK), 4),
        ((Status.UNDECIDED, Status.UNDECIDED), 5),
    ],
)
def test_the_exit_code_is_that_of_the_answers(call: Call, answers: Any, statuses: Any, code: int) -> None:
    answers(*statuses)
    result = call("checked_nets:setup", "--budget", "1500ms")
    assert result.exit_code == code, result.output
    assert result.stdout.startswith("checked_nets:setup: ")  # what the factory prints stands on stderr
    assert "1.5 s, Linear(in_features=20, out_features=5, bias=True)" in " ".join(result.stdout.split())


def test_files_json_and_a_baseline(call: Call, answers: Any, tmp_path: Path) -> None:
    answers(Status.FINE, Status.LOOK)
    first = call("checked_nets:setup", "--out", "found/here")
    assert first.stdout.splitlines()[-1] == "found/here/index.html"
    written = sorted(path.name for path in (tmp_path / "found" / "here").iterdir())
    assert written == ["card.md", "card.svg", "check.json", "index.html"]
    told = json.loads((tmp_path / "found" / "here" / "check.json").read_text())
    assert told["about"]["name"] == "checked_nets:setup"
    assert told["answers"]["data"]["findings"][0]["nature"] == ""  # it is none of the question's own kinds
    answers(Status.BROKEN, Status.LOOK)
    second = call("checked_nets:setup", "--json", "--baseline", "found/here/check.json")
    assert second.exit_code == 3
    against = json.loads(second.stdout)["against"]
    assert {name: row["change"] for name, row in against["answers"].items()} == {"signal": "worse", "data": "same"}
    third = call("checked_nets:setup", "--baseline", "found/here")
    assert "Against checked_nets:setup of 20" in third.stdout
    (tmp_path / "file").touch()
    lost = call("checked_nets:setup", "--out", "file/below")
    assert lost.exit_code == 1
    assert lost.stderr.splitlines()[-1].startswith("depthgauge: the check cannot be written to file/below")
    assert lost.stdout == "", "it is refused before half a minute is spent"


def test_no_page_takes_the_place_of_somebody_s(call: Call, answers: Any, tmp_path: Path) -> None:
    answers(Status.FINE, Status.FINE)
    (tmp_path / "index.html").write_text("precious")
    result = call("checked_nets:setup", "--out", ".")
    assert result.exit_code == 1
    assert "a page is there that is no check's" in result.stderr
    assert (tmp_path / "index.html").read_text() == "precious"
    assert result.stdout == "", "it is refused before half a minute is spent"


def test_one_of_our_models_and_a_module_with_inputs_of_its_own(call: Call, answers: Any) -> None:
    answers(Status.FINE, Status.FINE)
    ours = call("--model", "softmax_regression", "--data", "digits", "--batch", "16", "--lr", "0.5")
    assert ours.exit_code == 0, ours.output
    assert "SGD, rate 0.5 · batch float32 16 x 1 x 8 x 8, int64 16" in " ".join(ours.stdout.split())
    for words in (("checked_nets:Net",), ("checked_nets:module", "--input-shape", "20")):
        drawn = call(*words)
        assert drawn.exit_code == 0, drawn.output
        assert "Its inputs and labels are drawn at random" in drawn.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "name what is checked: a factory, my_project.train:setup, or one of our models by --model"),
        (("checked_nets:setup", "--model", "mlp"), 2, "name what is checked"),
        (("checked_nets:setpu",), 2, "checked_nets ("),
        (("checked_net:setup",), 2, "there is no module 'checked_net' for checked_net:setup"),
        (("checked_nets.py:setup",), 2, "checked_nets.py:setup names a file, where the module is wanted: checked_nets"),
        (("checked_nets:needs",), 2, "checked_nets:needs cannot be called without 'width': give it a default"),
        (("checked_nets:raises",), 1, "checked_nets:raises raised KeyError when it was called: 'nothing there' (in ra"),
        (("checked_nets:other",), 2, "checked_nets:other made a int, where a torch.nn.Module or a Training was"),
        (("checked_nets:module",), 2, "checked_nets:module makes a Linear, and nothing says what it takes: return a"),
        (("checked_nets:training",), 2, "checked_nets:training is a training itself; name a function that makes"),
        (("checked_nets:setup", "--input-shape", "3"), 2, "checked_nets:setup makes a Training, which has batches"),
        (("checked_nets:setup", "--lr", "1"), 2, "checked_nets:setup makes a Training, which has its own: leave --lr"),
        (("checked_nets:setup", "--only", "sginal"), 2, "Invalid value for '--only': 'sginal' is no question of a che"),
        (("checked_nets:setup", "--budget", "3 days"), 2, "Invalid value for '--budget'"),
        (("checked_nets:setup", "--budget", "0s"), 2, "Invalid value for '--budget'"),
        (("checked_nets:setup", "--device", "tpu"), 2, "there is no device 'tpu'"),
        (("checked_nets:setup", "--baseline", "no.json"), 2, "Invalid value for '--baseline': there is no file no.j"),
        (("--model", "mpl"), 2, "there is no model 'mpl'; did you mean 'mlp'?"),
        (("--model", "checked_nets:setup"), 2, "--model names one of our models; leave --model out"),
        (("--model", "mlp", "--data", "digits", "--input-shape", "3"), 2, "--input-shape is for factories: --data"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence(call: Call, words: tuple[str, ...], code: int, told: str) -> None:
    result = call(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.splitlines()[-1].startswith(f"depthgauge: {told}")


@pytest.mark.parametrize(
    ("factory", "told", "advice"),
    [
        ("vector", "the loss has the shape (8,), where one number was expected", "reduce the loss to one number"),
        ("number", "the loss is a float, where a tensor of one number was expected", "return the loss as the tensor"),
        ("elsewhere", "one pass raises", 'the first batch is on meta, the weights are on cpu; move the batch in the l'),
        ("doubled", "one pass raises", "the first batch is float64, the weights are float32"),
        ("narrow", "one pass raises", "make the first layer as wide as the examples: the first batch is float32 8 x"),
        ("mapping", "one pass raises", "give a loss(model, batch) that hands the module what it takes"),
        ("detached", "the loss depends on no parameter that trains", "take torch.no_grad() and .detach() out"),
    ],
)  # fmt: skip
def test_a_training_that_raises_is_an_answer_that_helps(call: Call, factory: str, told: str, advice: str) -> None:
    result = call(f"checked_nets:{factory}", "--json")
    assert result.exit_code == 3, result.output
    found = json.loads(result.stdout)["answers"]
    assert found["data"]["status"] == "broken"
    assert found["data"]["where"]
    assert told in found["data"]["says"]
    assert advice in found["data"]["advice"]
    assert {answer["status"] for name, answer in found.items() if name != "data"} == {"undecided"}


def test_from_python_the_training_and_the_card(answers: Any) -> None:
    answers(Status.LOOK, Status.FINE)
    model = torch.nn.Linear(3, 2)
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    found = checking.check(model, batches)
    assert found.about.model == "Linear"
    assert (found.about.parameters, found.about.batch) == (8, "float32 4 x 3, int64 4")
    assert found.card.startswith("Linear: 1 to look at, 1 fine\n")
    assert dataclasses.replace(found.about, note="as drawn") == found.named("Linear", "as drawn").about
    assert undecided("data", "", "no").status is Status.UNDECIDED


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.coloured()
