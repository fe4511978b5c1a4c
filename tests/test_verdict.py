import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest

from depthgauge import stats
from depthgauge.stats import location
from depthgauge.verdict import FEWEST, Claim, Figure, Findings, Sentence, Status, Verdict


def test_statuses_are_the_words_of_the_contract():
    words = ["holds", "fails", "depends", "inconclusive", "not_applicable", "not_measured"]
    assert [str(status) for status in Status] == words
    assert json.dumps(Status.HOLDS) == '"holds"'
    assert f"{Status.NOT_APPLICABLE}" == "not_applicable"
    with pytest.raises(ValueError, match="maybe"):
        Status("maybe")


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ((True, True), Status.HOLDS),
        ((False, False), Status.FAILS),
        ((True, False, None), Status.DEPENDS),
        ((True, None), Status.INCONCLUSIVE),
        ((), Status.INCONCLUSIVE),
    ],
)
def test_what_statistics_combine_is_a_status(conditions, status):
    assert Status(stats.combine(conditions)) is status


def test_a_verdict_needs_no_figures_and_holds_what_the_report_prints():
    bare = Verdict("X01", "a claim", Status.INCONCLUSIVE)
    assert (bare.observed, bare.low, bare.high, bare.predicted, bare.n) == (None, None, None, None, 0)
    assert {field.name for field in dataclasses.fields(Verdict)} == {
        "id", "claim", "status", "observed", "low", "high", "predicted", "unit", "n", "counted", "table", "condition",
        "answer", "method", "why", "says", "reference", "margin", "log", "needed",
        "at_edge",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"low": 0.9, "high": 1.1, "n": 4}, "it is; undecided, for 4 seeds are fewer than 5"),
        ({"low": math.nan, "high": math.nan, "n": 9}, "it is; undecided, for there is no interval"),
        ({"low": 0.9, "high": math.inf, "n": 5}, None),
        ({"n": 1}, None),  # exact arithmetic
    ],
)
@pytest.mark.parametrize("status", [Status.HOLDS, Status.FAILS, Status.DEPENDS])
def test_an_interval_that_cannot_carry_a_status_leaves_it_undecided(status, figures, why):
    made = Verdict("X01", "a claim", status, observed=1.0, why="it is", **figures)
    assert (made.status, made.why) == ((Status.INCONCLUSIVE, why) if why else (status, "it is"))
    assert location.FEWEST == FEWEST


@pytest.mark.parametrize(
    "thing", [Claim("X01", "x"), Verdict("X01", "x", Status.HOLDS), Findings(()), Figure("f", None, "t")]
)
def test_what_is_said_cannot_be_changed_afterwards(thing):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, dataclasses.fields(thing)[0].name, "other")


def test_declaring_imports_nothing_heavy():
    code = "import sys, depthgauge.study, depthgauge.verdict; print(*{'torch', 'pandas', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("claims", [("a",), ["a"], "a"])
def test_a_sentence_takes_claims_as_they_are_written(claims: Any) -> None:
    assert Sentence("x", claims=claims).claims == ("a",)
    assert len({Sentence("x", claims=claims), Sentence("x", claims=("a",))}) == 1
