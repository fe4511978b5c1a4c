"""Under which conditions a claim is true, in words."""

from __future__ import annotations

import pytest

from depthgauge.conditions import explained


def said(by: str, answers: dict[tuple[object, ...], bool | None]) -> str:
    return explained(by.split(), answers, lambda key: " at ".join(map(str, key)))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, ""),
        ({("a",): True}, "true"),
        ({("a",): False, ("b",): False}, "false under all 2 conditions"),
        ({("a",): None}, "undecided"),
        ({("a",): None, ("b",): None}, "undecided under all 2 conditions"),
        ({("a",): True, ("b",): None}, "true under 1 of 2 conditions; undecided under 1"),
        ({("a",): True, ("b",): False, ("c",): True}, "true for a, c; false for b"),
        ({("a",): True, ("b",): False, ("c",): None}, "true for a; false for b; undecided under 1 more"),
    ],
)
def test_one_text_condition(answers: dict[tuple[object, ...], bool | None], words: str) -> None:
    assert said("net", answers) == words


def test_a_threshold_is_found_among_numbers_in_any_order() -> None:
    answers = {(1.5,): False, (0.5,): True, (-1.0,): True, (2.0,): False}
    assert said("sigma_w", answers) == "true up to sigma_w 0.5, false from 1.5"
    assert said("batch_size", {(8,): False, (1024,): True}) == "false up to batch size 8, true from 1,024"


def test_numbers_without_a_threshold_are_listed() -> None:
    assert said("depth", {(1,): True, (2,): False, (3,): True}) == "true for depth 1, 3; false for depth 2"


def test_the_column_that_sorts_all_is_named_and_the_other_left_out() -> None:
    answers = {("tanh", 1): True, ("tanh", 2): True, ("relu", 1): False, ("relu", 2): False}
    assert said("activation depth", answers) == "true for tanh; false for relu"


def test_without_a_rule_the_exceptions_are_named() -> None:
    answers = {("tanh", 1): True, ("tanh", 2): False, ("relu", 1): True, ("relu", 2): True}
    assert said("activation depth", answers) == "true under 3 of 4 conditions; false for tanh at 2"


def test_more_than_three_are_counted() -> None:
    answers = {(name,): name != "x" for name in "abcdx"}
    assert said("net", answers) == "true for a, b, c and 1 more; false for x"
