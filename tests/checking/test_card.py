"""The card of made-up answers: as text, markdown, page, picture, frame and JSON, and held against another."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import matplotlib.figure
import pandas as pd
import pytest

from depthgauge import checking
from depthgauge.checking import Answer, Checked, Finding, Measure, Status, Tried, evidence
from depthgauge.checking.about import About
from depthgauge.checking.against import Change, against
from depthgauge.checking.amounts import figure
from depthgauge.checking.answers import undecided
from depthgauge.checking.card import sentence, text, ticked
from depthgauge.checking.page import page
from depthgauge.checking.page import ticked as ticked_in_html
from depthgauge.jsonfile import JsonError

RATIO = Measure("gradient at the first layer over that at the last", 4.1e-4, 3.2e-4, 5.3e-4, "", "over 4 batches")
HE = Tried("He initialization", "gradient at the first layer over that at the last", 4.1e-4, 0.81)
VANISHING = Finding(
    "vanishing", Status.BROKEN, "The gradient at `layers.0` is 0.00041 times that at `layers.18`.",
    "initialize the linear layers with gain 1.41 (torch.nn.init.kaiming_normal_)", "the loss falls to 0.41 in 60 steps",
    ("layers.0", "layers.2"), RATIO, HE,
)  # fmt: skip
FORGOTTEN = Finding("not_held", Status.LOOK, "No group holds <head> | _x_.", "add `model.head` to the optimizer")
TABLE = pd.DataFrame({"layer": ["layers.0", "=cmd"], "value": [0.1, 0.2], "low_95": [0.05, 0.1], "high_95": [0.2, 1]})
STEP = Measure("step", 5.1e-3, 4.9e-3, 5.4e-3, "s")


def made(**changed: Answer) -> Checked:
    """A check with one answer of each status; `changed` ones take the place of those of their id."""
    answers = {
        "signal": Answer("signal", "Does it?", "The gradient does not arrive.", (FORGOTTEN, VANISHING), RATIO,
                         {"layers": TABLE}, 1.2),
        "batch": undecided("batch", "Is the batch right?", "there is no optimizer"),
        "precision": undecided("precision", "Which format?", "there is no optimizer"),
        "data": Answer("data", "Are data right?", "The loss is 2.31.", (), Measure("loss", 2.31, 2.29, 2.33), {}, 0.4),
        "cost": Answer("cost", "What does it cost?", "A step takes 5.1 ms.", (), STEP, {}, math.inf),
    }  # fmt: skip
    about = About("my.train:setup", "MLP", 12810, 12800, "SGD, rate 0.1", "float32 32 x 64", started="now", seconds=3.0)
    return Checked(tuple((answers | changed).values()), 30.0, about)


def test_the_card_has_the_worst_first_and_says_what_to_do() -> None:
    lines = text(made(), 100).splitlines()
    assert lines[0] == "my.train:setup: 1 broken, 2 undecided, 2 fine"
    assert lines[1].startswith("MLP, 12,810 parameters, 12,800 of them train · SGD, rate 0.1 · batch float32 32 x 64")
    heads = [line.split(":")[0] for line in lines if re.match(r"\S \w+ +[a-z, ]+:", line)]
    told = ["✗ broken    signal", "? undecided batch, precision", "✓ fine      data", "✓ fine      cost"]
    assert heads == told, "the two that nobody asked give one reason, and stand together"
    whole = "\n".join(lines)
    assert whole.index("→ initialize the linear layers") < whole.index("→ add `model.head`"), "a fault before a wish"
    assert "expected: the loss falls to 0.41 in 60 steps" in whole
    assert "(4.1 [3.2, 5.3]) × 10⁻⁴" in whole
    assert "4.1 × 10⁻⁴ before, 0.81 after" in " ".join(whole.split())


def test_causes_come_first_where_there_is_other_advice() -> None:
    first = "Mend signal first, and check again"
    assert first not in text(made(), 100), "all other answers are without advice"
    look = dataclasses.replace(made().answers["cost"], findings=(FORGOTTEN,))
    found = made(cost=look)
    assert first in text(found, 100)
    assert first in found.markdown
    assert first not in text(made(cost=look, signal=undecided("signal", "", "no time")), 100)


@pytest.mark.parametrize(("asked", "columns"), [(20, 60), (60, 60), (93, 93), (200, 200), (999, 200)])
def test_no_line_is_wider_than_the_terminal(asked: int, columns: int) -> None:
    lines = text(made(), asked).splitlines()
    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > columns - 25 or columns == 200
    assert lines[0].startswith("my.train:setup: ")


def test_colours_and_plain_characters() -> None:
    painted = text(made(), 80, colour=True)
    assert "\x1b[1;31m✗ broken" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == text(made(), 80)
    assert "\x1b" not in text(made(), 80)
    marks = text(made(), 80, plain=True)
    assert "x broken" in marks
    assert "✗" not in marks
    steering = dataclasses.replace(made().answers["data"], says="\x1b[2J\x07 cleared")
    assert "\x1b" not in text(made(data=steering), 80)


def test_figures_are_read_in_the_unit_that_suits_them() -> None:
    assert figure(STEP) == "step 5.10 [4.90, 5.40] ms"
    assert figure(Measure("step", 2.5e-5, unit="s")) == "step 25 µs"
    assert figure(Measure("step", 2.5, 2.0, 3.0, "s")) == "step 2.5 [2.0, 3.0] s"
    assert figure(Measure("nothing")) == ""


def test_markdown_shows_what_was_said_and_nothing_else() -> None:
    page = made().markdown
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "No group holds &lt;head> \\| \\_x\\_." in page
    assert "The gradient at `layers.0` is 0.00041 times that at `layers.18`." in page
    assert "- do: add `model.head` to the optimizer" in page
    assert ticked("`a_b` and a_b and `<c>`") == "`a_b` and a_b and `<c>`"
    assert ticked("one ` alone") == "one \\` alone"
    assert ticked_in_html("`<b>` & <i>") == "<code>&lt;b&gt;</code> &amp; &lt;i&gt;"


def test_a_frame_has_a_row_a_finding_and_one_for_each_that_is_fine() -> None:
    frame = made().to_frame()
    assert list(frame["question"]) == ["signal", "signal", "batch", "precision", "data", "cost"]
    assert list(frame["status"]) == ["broken", "look", "undecided", "undecided", "fine", "fine"]
    first, last = frame.iloc[0], frame.iloc[-1]
    assert (first["kind"], first["where"], first["after"]) == ("vanishing", "layers.0, layers.2", 0.81)
    assert (last["text"], last["value"], last["unit"]) == ("A step takes 5.1 ms.", 5.1e-3, "s")


def test_what_is_written_is_read_again(tmp_path: Any) -> None:
    found = made()
    assert found.write(tmp_path / "new" / "check") == tmp_path / "new" / "check" / "index.html"
    folder = tmp_path / "new" / "check"
    told = json.loads((folder / "check.json").read_text(), parse_constant=lambda name: pytest.fail(f"holds {name}"))
    assert (told["schema"], told["status"], told["exit_code"]) == (1, "broken", 3)
    assert told["asked"] == {"questions": [answer.id for answer in found.asked], "budget": 30.0}
    signal = told["answers"]["signal"]
    assert (signal["status"], signal["value"], signal["low"], signal["high"]) == ("broken", 4.1e-4, 3.2e-4, 5.3e-4)
    assert signal["where"] == ["layers.0", "layers.2"]
    assert signal["advice"] == VANISHING.advice
    assert told["answers"]["batch"]["value"] == "nan"
    assert told["answers"]["cost"]["seconds"] == "inf"
    assert told["run"]["torch"]
    assert (folder / "card.md").read_text() == found.markdown
    assert "'=cmd" in (folder / "tables" / "signal.layers.csv").read_text(), "no spreadsheet takes it for a formula"
    again = Checked.read(folder)
    bare = [dataclasses.replace(answer, tables={}, seconds=0.0) for answer in found.asked]
    read = [dataclasses.replace(answer, tables={}, seconds=0.0) for answer in again.asked]
    assert repr(read) == repr(bare)  # NaN is not NaN
    assert (again.about, again.budget, again.exit_code) == (found.about, 30.0, 3)
    assert again.answers["cost"].seconds == math.inf


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "is no object"),
        ('{"schema": 2}', "has the schema 2, where this version reads 1"),
        ('{"schema": 1}', "lacks 'answers'"),
        ('{"schema": 1, "answers": {"a": {}}, "about": {}, "asked": {}, "run": {}}', "lacks 'findings'"),
        ('{"schema": 1, "answers": {}, "about": {}, "asked": {"budget": "x"}, "run": {}}', "text as asked.budget"),
        ("nonsense", "is not JSON"),
    ],
)
def test_what_is_no_check_is_refused_in_a_sentence(tmp_path: Any, content: str, told: str) -> None:
    (tmp_path / "check.json").write_text(content)
    with pytest.raises(JsonError, match=re.escape(told)):
        Checked.read(tmp_path)


def test_the_page_holds_everything_escaped_and_loads_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(answer: Answer) -> matplotlib.figure.Figure:
        canvas = matplotlib.figure.Figure(figsize=(7, 3.5))
        canvas.subplots().plot(answer.tables["layers"]["value"])
        return canvas

    planted = tuple(dataclasses.replace(each, draw=draw) for each in checking.QUESTIONS)
    monkeypatch.setattr(evidence, "QUESTIONS", planted)
    found = made(data=dataclasses.replace(made().answers["data"], tables={"other": TABLE}))
    page = found.write(tmp_path).read_text()
    assert "No group holds &lt;head&gt; | _x_." in page
    assert "data:image/" in page, "the figure of signal"
    assert "its figure could not be drawn: KeyError" in page, "data has no such table, and the page stands"
    assert (tmp_path / "figures" / "signal.png").read_bytes().startswith(b"\x89PNG")
    assert "![The gradient does not arrive.](figures/signal.png)" in (tmp_path / "card.md").read_text()
    assert page.index('id="signal"') < page.index('id="batch"') < page.index('id="data"')
    assert not re.search(r"(?:src|href)=\"(?!data:)[^\"#]", page)
    assert page.count("<details>") == 5 + 1


def test_the_picture_is_the_card(tmp_path: Any) -> None:
    found = made()
    found.write(tmp_path)
    picture = (tmp_path / "card.svg").read_text()
    words = re.sub(r"<[^>]+>", "", picture)
    assert all(part in words for part in ("✗ broken", "add `model.head` to the optimizer", "✓ fine"))
    assert "No group holds &lt;head&gt;" in picture


def test_a_notebook_shows_it_and_its_repr_is_a_line() -> None:
    shown = made()._repr_html_()
    assert "<code>layers.0</code>" in shown
    assert "&lt;head&gt;" in shown
    assert "<head>" not in shown
    told = "signal broken, batch undecided, precision undecided, data fine, cost fine"
    assert repr(made()) == f"<Checked broken: {told}>"


# -- against an earlier one --------------------------------------------------------------------------------------------


def cost(value: float, low: float, high: float, unit: str = "s", *findings: Finding) -> Answer:
    return Answer("cost", "What does it cost?", "so much", findings, Measure("step", value, low, high, unit))


SLOW = Finding("slow", Status.LOOK, "The loader is slow.", measure=Measure("step", 2.0, 1.5, 2.5, "s"))
FACT = Finding("no_gradient", Status.BROKEN, "`head` gets no gradient.", where=("head",))
PLAIN = cost(1.0, 0.95, 1.05)


@pytest.mark.parametrize(
    ("before", "after", "change", "says"),
    [
        (PLAIN, cost(1.02, 0.97, 1.07), Change.SAME, "within a factor of 1.25"),
        (PLAIN, cost(1.3, 1.2, 1.4), Change.WORSE, "step 1.00 [0.95, 1.05] s before, 1.30 [1.20, 1.40] s now"),
        (PLAIN, cost(0.5, 0.4, 0.6), Change.BETTER, "now"),
        (cost(1.0, 0.95, 1.05, ""), cost(0.5, 0.4, 0.6, ""), Change.CHANGED, "now"),
        (PLAIN, cost(1.3, 1.0, 1.7), Change.INCONCLUSIVE, "the intervals overlap"),
        (PLAIN, cost(1.0, math.nan, math.nan), Change.INCONCLUSIVE, "without an interval"),
        (PLAIN, cost(1.3, 1.2, 1.4, "B"), Change.SAME, "the same findings"),
        (PLAIN, cost(1.0, 0.95, 1.05, "s", FACT), Change.WORSE, "fine before, broken now; new: `head` gets no"),
        (cost(1.0, 0.95, 1.05, "s", FACT), PLAIN, Change.BETTER, "broken before, fine now; gone: `head` gets no"),
        (cost(1.9, 1.4, 2.4), cost(2.0, 1.5, 2.5, "s", SLOW), Change.INCONCLUSIVE, "do not tell them apart: step"),
        (cost(1.0, 0.9, 1.1), cost(2.0, 1.5, 2.5, "s", SLOW), Change.WORSE, "new: The loader is slow."),
        (cost(1, 1, 1, "s", FACT), cost(1, 1, 1, "s", FACT, SLOW), Change.WORSE, "new: The loader"),
        (PLAIN, undecided("cost", "", "no time"), Change.INCONCLUSIVE, "fine before, undecided now: no time"),
    ],
)
def test_what_changed_is_decided_by_intervals(before: Answer, after: Answer, change: Change, says: str) -> None:
    found = against(made(cost=after), made(cost=before))
    row = next(row for row in found.rows if row.id == "cost")
    assert row.change is change
    assert says in row.says


def test_changes_come_the_worst_first_with_what_differs_besides(tmp_path: Any) -> None:
    made(cost=PLAIN).write(tmp_path)
    told = json.loads((tmp_path / "check.json").read_text())
    told["run"]["torch"] = "0.1"
    del told["answers"]["data"]
    (tmp_path / "check.json").write_text(json.dumps(told))
    now = made(cost=cost(2.0, 1.9, 2.1))
    found = now.against(tmp_path / "check.json")
    assert found.tally == "1 worse, 2 inconclusive, 1 same"
    assert [row.id for row in found.rows] == ["cost", "batch", "precision", "signal"]
    assert found.notes[0] == "asked now alone: data"
    assert "torch 0.1 -> " in found.notes[1]
    frame = found.to_frame()
    assert (frame["value_before"][0], frame["value_after"][0], frame["unit"][0]) == (1.0, 2.0, "s")
    assert "Against my.train:setup of now: 1 worse" in text(now, 80, changes=found)
    now.write(tmp_path / "new", Checked.read(tmp_path))
    written = json.loads((tmp_path / "new" / "check.json").read_text())["against"]
    assert written["answers"]["cost"]["change"] == "worse"
    assert 'class="worse">worse' in (tmp_path / "new" / "index.html").read_text()
    with pytest.raises(ValueError, match="margin is a factor above 1"):
        against(now, now, margin=1.0)


def test_a_sentence_begins_with_a_capital_where_it_is_no_name() -> None:
    assert sentence("the loss falls") == "The loss falls"
    assert sentence("float16 holds them") == "float16 holds them"
    assert sentence("`fc1` gets none") == "`fc1` gets none"
    assert '<p class="says">The loss is 2.31.' in page(made(data=Answer("data", "Are they?", "the loss is 2.31.")), {})
