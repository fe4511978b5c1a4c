"""The choice of the findings that open a report."""

from dataclasses import replace

from depthgauge.reports.content import Drawing, Section
from depthgauge.reports.headlines import by_topic, headlines
from depthgauge.verdict import Sentence, Status, Verdict


def section(name, topic, *answers, cases=1):
    drawings = (Drawing("map", f"{name}.map", "t", "", "a", b"", b""),)
    return Section(name, name, topic=topic, answers=answers, drawings=drawings, cases=cases)


def texts(found):
    return [one.sentence.text for one in found]


def test_studies_take_turns_in_the_order_of_the_questions():
    last = section("a", "devices", Sentence("a1"), Sentence("a2", "map"), Sentence("a3", "map"))
    first = section("b", "signal", Sentence("b1", "map"))
    own = section("c", "", Sentence("c1", "map"))
    empty = section("d", "signal", cases=0)
    assert [one.name for one in by_topic((last, own, empty, first))] == ["b", "a", "c", "d"]
    found = headlines((last, own, empty, first))
    assert texts(found) == ["b1", "a2", "c1", "a3", "a1"]
    assert [one.drawing is None for one in found] == [False, False, False, False, True]
    assert found[1].section is last


def test_there_are_seven_and_those_with_a_figure_go_first():
    answers = [Sentence(str(i), "map" if i % 2 else "none") for i in range(20)]
    found = headlines((section("a", "signal", *answers),))
    assert texts(found) == ["1", "3", "5", "7", "9", "11", "13"]


def test_what_was_decided_goes_before_what_was_not():
    open_one, told = Sentence("too few seeds", "map", ("a",)), Sentence("it does", "", ("a", "b"))
    verdicts = (Verdict("a", "?", Status.INCONCLUSIVE), Verdict("b", "?", Status.HOLDS))
    assert texts(headlines([replace(section("s", "signal", open_one, told), verdicts=verdicts)])) == [
        "it does", "too few seeds",
    ]  # fmt: skip
