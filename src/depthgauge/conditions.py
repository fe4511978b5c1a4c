"""Under which conditions a claim is true, in words: the shortest rule that sorts them.

    explained(("activation", "sigma_w"), {("tanh", 0.5): False, ("tanh", 1.0): True, ("relu", 1.4): True})
    "false up to sigma_w 0.5, true from 1"

One condition alone that sorts them all comes first: a threshold, or a list of values. Where none does, a few exceptions
are named; where they are many, the condition that sorts most. Nothing is fitted: the words are right for every
condition that was asked, and for no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Key = tuple[Any, ...]

_MOST = 3  # values that are named on one side
_LETTERS = 80  # of names that are given instead of their number
WORDS = {True: "true", False: "false", None: "undecided"}


def plainly(key: Key) -> str:
    """A condition by its values alone."""
    return ", ".join(map(str, key))


def explained(by: Sequence[str], answers: Mapping[Key, bool | None], words: Callable[[Key], str] = plainly) -> str:
    """Under which conditions it is true, false and undecided; empty where nothing was asked.

    Args:
        by: names of the conditions' columns.
        answers: condition -> true, false, or None where it is undecided.
        words: spells a condition.
    """
    decided = {key: bool(answer) for key, answer in answers.items() if answer is not None}
    open_ones = [words(key) for key, answer in answers.items() if answer is None]
    if not answers:
        return ""
    kinds = set(decided.values())
    if len(kinds) < 2:
        word = WORDS[kinds.pop() if kinds else None]
        if not open_ones or not decided:
            return word + _all_of([words(key) for key in answers])
        told = [words(key) for key in decided]
        named = f"for {parted(told)}" if len(told) <= _MOST else f"for {len(told)} of {len(answers)} conditions"
        return f"{word} {named}; {_open(open_ones)}"
    rest = f"; {_open(open_ones, f' of {len(answers)} conditions')}" if open_ones else ""
    rules = [rule for place, name in enumerate(by) if (rule := _rule(name, place, decided))]
    if rules:
        return min(rules, key=len) + rest
    return _told(by, decided, words, "decided" if open_ones else "conditions") + rest


def tallied(answers: Mapping[str, bool | None], what: str) -> str:
    """`true for 11 of 14 architectures; false for lenet5, alexnet; undecided for 1`: the common answer is counted.

    Args:
        answers: condition in words -> true, false, or None where it is undecided.
        what: the things asked about, in the plural.
    """
    sides = {word: [name for name, given in answers.items() if given == answer] for answer, word in WORDS.items()}
    said = sorted(((word, names) for word, names in sides.items() if names), key=lambda side: -len(side[1]))
    if not said:
        return ""
    (word, names), *others = said
    if not others:
        return f"{word} for {_every(len(names))} {what}" if len(names) > 1 else word
    return "; ".join(
        (
            f"{word} for {len(names)} of {len(answers)} {what}",
            *(f"{word} for {parted(names) if _short(names) else len(names)}" for word, names in others),
        )
    )


def undecided(answers: Iterable[bool | None], what: str = "") -> str:
    """`; 2 of 11 pairs are undecided`, to follow how many it is true of; empty where each is decided.

    Args:
        answers: true, false, or None where it is undecided.
        what: the things asked about, in the plural.
    """
    given = list(answers)
    if not (left := given.count(None)):
        return ""
    return f"; {left} of {len(given)}{f' {what}' * bool(what)} {'is' if left == 1 else 'are'} undecided"


def enumerated(names: Iterable[str], most: int = 4) -> str:
    """`a, b, c, d and 3 more`; `a (left), b` of names with commas of their own."""
    every = list(dict.fromkeys(names))
    return parted(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def parted(names: Iterable[str]) -> str:
    """`a, b (left, right)`: a list whose commas part its members; what follows a member's own comma is bracketed."""
    return ", ".join(map(_bracketed, names))


def _bracketed(name: str) -> str:
    head, comma, rest = name.partition(", ")
    return name if not comma or "(" in head else f"{head} ({rest})"


def _every(count: int) -> str:
    return "both" if count == 2 else f"all {count}"


def _short(names: Sequence[str]) -> bool:
    return len(names) <= _MOST and sum(map(len, names)) <= _LETTERS


def _all_of(names: Sequence[str]) -> str:
    """Behind a word, the conditions of which it is said; nothing for a single one."""
    if len(names) == 1:
        return ""
    return f" for {parted(names)}" if len(names) <= _MOST else f" for all {len(names)} conditions"


def _open(names: Sequence[str], among: str = "") -> str:
    """The conditions that are undecided: by name where they are few.

    Beside a rule their number is one among all: a value that the rule calls true may have some of them.
    """
    return f"undecided for {parted(names)}" if len(names) < _MOST else f"undecided for {len(names)}{among}"


def _rule(name: str, place: int, decided: Mapping[Key, bool]) -> str:
    """The rule that one column makes, if it sorts every condition."""
    sides: dict[Any, bool] = {}
    for key, answer in decided.items():
        if sides.setdefault(key[place], answer) is not answer:
            return ""
    values = list(sides)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        ordered = sorted(value for value in values if not math.isnan(value))
        switches = [i for i in range(1, len(ordered)) if sides[ordered[i]] is not sides[ordered[i - 1]]]
        if len(ordered) == len(values) and len(switches) == 1:
            below, above = ordered[switches[0] - 1], ordered[switches[0]]
            spelled = _spelled(name)
            return f"{WORDS[sides[below]]} up to {spelled} {_value(below)}, {WORDS[sides[above]]} from {_value(above)}"
    lists = {kind: [value for value in values if sides[value] is kind] for kind in (True, False)}
    return "; ".join(f"{WORDS[kind]} for {_listed(name, lists[kind])}" for kind in (True, False))


def _told(by: Sequence[str], decided: Mapping[Key, bool], words: Callable[[Key], str], what: str) -> str:
    """The rarer answer's conditions by name, where they are few; or else the column that leaves the fewest in part."""
    holds = sum(decided.values())
    common = holds * 2 >= len(decided)
    rare = [words(key) for key, answer in decided.items() if answer is not common]
    by_column = [_parted(name, place, decided) for place, name in enumerate(by)]
    left, text = min(by_column, default=(1.0, ""), key=lambda each: each[0])
    if left < 0.75 and not _short(rare):
        return text
    return (
        f"{WORDS[common]} for {len(decided) - len(rare)} of {len(decided)} {what};"
        f" {WORDS[not common]} for {enumerated(rare, _MOST)}"
    )


def _parted(name: str, place: int, decided: Mapping[Key, bool]) -> tuple[float, str]:
    """The share of conditions whose value in a column does not tell, and what it tells of the others."""
    sides: dict[Any, set[bool]] = {}
    for key, answer in decided.items():
        sides.setdefault(key[place], set()).add(answer)
    left = sum(len(sides[key[place]]) > 1 for key in decided) / len(decided)
    words = {"true": {True}, "false": {False}, "in part": {True, False}}
    lists = {word: [value for value, given in sides.items() if given == side] for word, side in words.items()}
    return left, "; ".join(f"{word} for {_listed(name, values)}" for word, values in lists.items() if values)


def _listed(name: str, values: Sequence[Any]) -> str:
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    texts = [_value(value) for value in values]
    text = all(isinstance(value, str) for value in values)
    few = enumerated(texts, _MOST)
    return few if text else f"{_spelled(name)} {few}"


def _spelled(name: str) -> str:
    return name if name.startswith("sigma_") else name.replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}".replace("-", "−") if isinstance(value, int | float) else str(value)
