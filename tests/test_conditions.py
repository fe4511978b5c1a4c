"""Under which conditions a claim is true, in words."""

from __future__ import annotations

import numpy as np
import pytest

from depthgauge.conditions import explained, parted, tallied, undecided


def said(by: str, answers: dict[tuple[object, ...], bool | None]) -> str:
    return explained(by.split(), answers, lambda key: " at ".join(map(str, key)))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, ""),
        ({("a",): True}, "true"),
        ({("a",): False, ("b",): False}, "false for a, b"),
        ({(name,): True for name in "abcd"}, "true for all 4 conditions"),
        ({("a",): None}, "undecided"),
        ({("a",): None, ("b",): None}, "undecided for a, b"),
        ({("a",): True, ("b",): None}, "true for a; undecided for b"),
        ({(name,): True if name < "e" else None for name in "abcde"}, "true for 4 of 5 conditions; undecided for e"),
        ({("a",): True, ("b",): False, ("c",): True}, "true for a, c; false for b"),
        ({("a",): True, ("b",): False, ("c",): None}, "true for a; false for b; undecided for c"),
        (
            {(name,): {"a": True, "b": False}.get(name) for name in "abcde"},
            "true for a; false for b; undecided for 3 of 5 conditions",
        ),
    ],
)
def test_one_text_condition(answers: dict[tuple[object, ...], bool | None], words: str) -> None:
    assert said("net", answers) == words


def test_shares_are_of_the_decided_where_some_are_not() -> None:
    """A value that is true where it is decided may have conditions that are not: their number is one among all."""
    answers = {(a, b): {(1, 2): False, (3, 3): None}.get((a, b), True) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert said("a b", answers) == "true for 7 of 8 decided; false for 1 at 2; undecided for 3 at 3"


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
    assert said("activation depth", answers) == "true for 3 of 4 conditions; false for tanh at 2"


def test_many_exceptions_are_told_by_the_column_that_sorts_most() -> None:
    answers = {
        (fmt, rate): fmt == "wide" or (fmt == "half" and rate > 2)
        for fmt in ("wide", "half", "tiny")
        for rate in range(5)
    }
    assert said("format rate", answers) == "true for wide; false for tiny; in part for half"
    mixed = {(a, b): (a + b) % 2 == 0 for a in range(4) for b in range(4)}
    assert said("a b", mixed) == "true for 8 of 16 conditions; false for 0 at 1, 0 at 3, 1 at 0 and 5 more"


def test_more_than_three_are_counted() -> None:
    answers = {(name,): name != "x" for name in "abcdx"}
    assert said("net", answers) == "true for a, b, c and 1 more; false for x"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, ""),
        ({"a": True, "b": True}, "true for both rates"),
        ({"a": True}, "true"),
        ({"a": None, "b": True, "c": None}, "undecided for 2 of 3 rates; true for b"),
        ({"a": False, "b": False, "c": True, "d": None}, "false for 2 of 4 rates; true for c; undecided for d"),
        ({name: name < "e" for name in "abcdefgh"}, "true for 4 of 8 rates; false for 4"),
        ({"a": True, "b": True, 81 * "c": False}, "true for 2 of 3 rates; false for 1"),
    ],
)
def test_many_conditions_of_one_kind_are_counted(answers: dict[str, bool | None], words: str) -> None:
    assert tallied(answers, "rates") == words


def test_a_list_of_names_with_commas_stays_one_of_names() -> None:
    assert parted(["naive, equal in float16", "plain"]) == "naive (equal in float16), plain"
    assert parted(["rates, relu, 8 layers", "he (batch norm, relu)"]) == "rates (relu, 8 layers), he (batch norm, relu)"
    assert tallied({"a, b": False, "c": True, "d": True}, "rates") == "true for 2 of 3 rates; false for a (b)"


def test_answers_of_numpy_are_answers() -> None:
    answers = {("a",): np.True_, ("b",): np.False_}
    assert said("net", answers) == "true for a; false for b"
    assert tallied({"a": np.True_, "b": np.True_}, "nets") == "true for both nets"


def test_without_words_a_condition_is_its_values() -> None:
    assert explained(("net", "depth"), {("a", 1): True, ("b", 1): None}) == "true for a (1); undecided for b (1)"


def test_what_is_undecided_follows_a_count() -> None:
    assert undecided([True, False]) == undecided([]) == ""
    assert undecided([True, None]) == "; 1 of 2 is undecided"
    assert undecided(iter([None, None, True]), "pairs") == "; 2 of 3 pairs are undecided"
