"""The order of a report: which question a finding and a claim stand under, and what becomes of a claim asked twice."""

from pathlib import Path

from depthgauge.cli import ending
from depthgauge.reports.content import Drawing, Section
from depthgauge.reports.outline import Outline
from depthgauge.verdict import Claim, Sentence, Status, Verdict

CLAIMS = (Claim("N05", "it vanishes"), Claim("x/cost", "it is dear", topic="cost"), Claim("N02", "it shrinks"))


def section(name, topic, *verdicts, answers=(), question=""):
    drawings = tuple(Drawing(one, f"{name}.{one}", "t", "", "a", b"", b"") for one in ("map", "rates"))
    return Section(name, name, question, topic, CLAIMS, cases=1, verdicts=verdicts, answers=answers, drawings=drawings)


def verdict(name, status=Status.HOLDS, says=""):
    return Verdict(name, f"claim {name}", status, says=says)


def topic(outline, name):
    [found] = [one for one in outline.topics if one.name == name]
    return found


def ids(rows):
    return [row.id for row in rows]


def test_claims_stand_under_their_question_those_of_the_notes_first():
    one = section("a", "signal", verdict("x/own"), verdict("N05"), verdict("x/cost"), verdict("N02"))
    outline = Outline.of((one,))
    assert [found.name for found in outline.topics] == ["signal", "cost"]
    signal = topic(outline, "signal")
    assert (ids(signal.notes), ids(signal.others)) == (["N02", "N05"], ["x/own"])
    assert ids(topic(outline, "cost").rows) == ["x/cost"]
    assert sum(count for _, count in outline.tally) == len(outline.rows) == 4


def test_what_was_not_answered_stands_apart():
    rows = (verdict("a", Status.NOT_MEASURED), verdict("b", Status.INCONCLUSIVE), verdict("c", Status.NOT_APPLICABLE))
    signal = topic(Outline.of((section("a", "signal", *rows),)), "signal")
    assert (ids(signal.others), ids(signal.unasked)) == (["b"], ["a", "c"])


def test_a_claim_of_two_studies_is_one_row_under_the_first_ones_question():
    start = section("a", "start", verdict("N05", Status.NOT_MEASURED))
    signal = section("b", "signal", verdict("N05", Status.HOLDS, "true for tanh"))
    outline = Outline.of((start, signal))
    [row] = outline.rows
    assert [found.name for found in outline.topics] == ["signal"]
    assert (row.status, row.says) == (Status.HOLDS, "true for tanh")
    assert [one.name for one, _ in row.answers] == ["b", "a"]
    assert [one.name for one in topic(outline, "signal").sections] == ["b", "a"]


def test_a_terminal_tells_what_the_page_tells_and_is_steered_by_no_text(capsys):
    told = Sentence("It \x1b[31mshrinks\x1b[0m \u202e.")
    sections = [section(name, "signal", verdict("N05"), answers=(told,)) for name in "ab"]
    ending.tell(Path("report.md"), sections)
    assert capsys.readouterr().out.splitlines()[:2] == ["1 claim: 1 holds", "  - It shrinks \\u202e."]


def test_studies_that_decide_otherwise_make_it_depend():
    answers = (verdict("N05", Status.HOLDS, "true"), verdict("N05", Status.FAILS, "false"))
    [row] = Outline.of([section(name, "signal", answer) for name, answer in zip("ab", answers, strict=True)]).rows
    assert (row.status, row.says) == (Status.DEPENDS, "a: true; b: false")


def test_a_claim_that_one_study_leaves_open_is_open_as_long_as_others_agree():
    def joint(*statuses):
        sections = [section(str(place), "signal", verdict("N05", status)) for place, status in enumerate(statuses)]
        [row] = Outline.of(sections).rows
        return row.status

    assert joint(Status.HOLDS, Status.INCONCLUSIVE) is joint(Status.INCONCLUSIVE, Status.FAILS) is Status.INCONCLUSIVE
    assert joint(Status.INCONCLUSIVE, Status.DEPENDS) is Status.DEPENDS
    assert joint(Status.NOT_MEASURED, Status.FAILS) is Status.FAILS


def test_a_figure_stands_once_with_all_that_it_shows_under_the_question_of_the_first():
    answers = (
        Sentence("dear", "rates", ("x/cost",)), Sentence("vanishes", "map"), Sentence("also", "rates"),
        Sentence("alone"), Sentence("lost", "none"),
    )  # fmt: skip
    outline = Outline.of((section("a", "signal", verdict("N05"), answers=answers),))
    [shown] = topic(outline, "signal").exhibits
    assert (shown.drawing.name, [one.text for one in shown.sentences]) == ("map", ["vanishes"])
    assert [one.text for _, one in topic(outline, "signal").remarks] == ["alone", "lost"]
    [shown] = topic(outline, "cost").exhibits
    assert [one.text for one in shown.sentences] == ["dear", "also"]
    assert outline.open == {"a.map", "a.rates"}


def test_a_study_without_topic_is_a_question_of_its_own():
    own = section("mine", "", verdict("N05"), question="What of mine?")
    outline = Outline.of((own, section("a", "devices", verdict("N02"))))
    assert [(one.name, one.question) for one in outline.topics] == [
        ("devices", "How many devices?"), ("study-mine", "What of mine?"),
    ]  # fmt: skip


def test_what_holds_is_folded_where_there_is_much_of_it():
    few = [verdict(f"x/{place}") for place in range(3)]
    less = verdict("x/less", Status.FAILS)
    signal = topic(Outline.of((section("a", "signal", *few, less),)), "signal")
    assert (ids(signal.told), signal.held) == (["x/0", "x/1", "x/2", "x/less"], ())
    signal = topic(Outline.of((section("a", "signal", *few, verdict("x/3"), verdict("N05"), less),)), "signal")
    assert (ids(signal.notes), ids(signal.told), len(signal.held)) == (["N05"], ["x/less"], 4)
