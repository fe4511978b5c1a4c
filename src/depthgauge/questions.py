"""One question asked under many conditions, answered once for table, verdict, sentence and figure.

    rates = Question.of("rates", ("activation", "sigma_w"), {
        ("tanh", 1.0): stats.against(measured, predicted, margin=0.02, confidence=0.99),
        ("tanh", 1.5): ...
    }, label="{activation} at sigma_w = {sigma_w:.3g}")

    yield rates.table()                                          # ("rates", one row a condition)
    yield rates.verdict(CLAIM, agrees, why=f"... {rates.listed(agrees, {False: 'different for'})}")

The members of a family are corrected once, when the question is asked (`stats.together`). The interval of a table's
row, that of the verdict and the bar of a figure are one and the same, and so is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from depthgauge import stats
from depthgauge.conditions import WORDS, explained, tallied
from depthgauge.conditions import enumerated as enumerated  # noqa: PLC0414 - studies spell answers by both modules
from depthgauge.stats import Comparison, Estimate
from depthgauge.verdict import FEWEST, Claim, Status, Verdict

_DETERMINISTIC = 1e6  # standard errors: what deviates by more does not scatter, and rounding alone made the error
_AT_EDGE = "a learning rate at the end of its grid, beyond which a better one may lie, leaves undecided"
Key = tuple[Any, ...]
Reading = Callable[[Comparison], bool | None]
"""What a comparison says of a claim: True, False, or None where it decides nothing."""


def agrees(comparison: Comparison) -> bool | None:
    """Inside the margin, or beyond it."""
    return True if comparison.inside else False if comparison.beyond else None


def agreed(answer: str) -> bool | None:
    """Read the answer in a table, of a comparison that has a margin: what `agrees` says of the comparison."""
    return {stats.Answer.EQUIVALENT: True, stats.Answer.NEGLIGIBLE: True, stats.Answer.BEYOND: False}.get(
        stats.Answer(answer)
    )


def above(comparison: Comparison) -> bool | None:
    """Above the reference by more than the margin; it is not where the whole interval stays under that."""
    return True if comparison.above else False if comparison.inside or _under(comparison) else None


def below(comparison: Comparison) -> bool | None:
    """Below the reference by more than the margin; it is not where the whole interval stays over that."""
    return True if comparison.below else False if comparison.inside or _over(comparison) else None


def _under(comparison: Comparison) -> bool:
    """Whether the whole interval lies below the margin's upper end."""
    return comparison.below or (_bounded(comparison) and comparison.effect.high < _end(comparison, 1))


def _over(comparison: Comparison) -> bool:
    """Whether the whole interval lies above the margin's lower end."""
    return comparison.above or (_bounded(comparison) and comparison.effect.low > _end(comparison, -1))


def _bounded(comparison: Comparison) -> bool:
    """Whether there is a margin, and nothing but the interval keeps the comparison open."""
    return comparison.margin is not None and not math.isnan(comparison.p_equivalent)


def _end(comparison: Comparison, side: int) -> float:
    assert comparison.margin is not None
    if comparison.log:
        return float(comparison.reference * comparison.margin**side)
    return comparison.reference + side * comparison.margin


def not_above(comparison: Comparison) -> bool | None:
    """At most the margin above the reference, with the whole interval; however far below does not matter."""
    return None if (answer := above(comparison)) is None else not answer


def not_below(comparison: Comparison) -> bool | None:
    """At most the margin below the reference, with the whole interval; however far above does not matter."""
    return None if (answer := below(comparison)) is None else not answer


def side(comparison: Comparison) -> int | None:
    """+1 and -1 beyond the margin, 0 inside it, None where the interval cannot tell."""
    return 1 if comparison.above else -1 if comparison.below else 0 if comparison.inside else None


def every(answers: Iterable[bool | None]) -> bool | None:
    """The answer to a claim that states several things at once: false where one of them is."""
    given = set(answers)
    return False if False in given else None if None in given else True


def either(answers: Iterable[bool | None]) -> bool | None:
    """True where one is true, false where all are, None otherwise."""
    given = set(answers)
    return True if True in given else None if None in given else False


def ends(confidence: float, name: str = "") -> tuple[str, str]:
    """Names of the columns of an interval's ends, `low_95` and `high_95`, or `rate_low_95` of a figure named `rate`."""
    prefix = f"{name}_" if name else ""
    return f"{prefix}low_{100 * confidence:g}", f"{prefix}high_{100 * confidence:g}"


def spelled(name: str, estimate: Estimate, confidence: float = 0.95) -> dict[str, float]:
    """An estimate as three columns: `name`, `name_low_95`, `name_high_95`."""
    low, high = ends(confidence, name)
    return {name: estimate.value, low: estimate.low, high: estimate.high}


def listed(answers: Mapping[str, Hashable], words: Mapping[Any, str], most: int = 4, lead: str = "") -> str:
    """`shrinks for a, b; does neither for c and 3 more`: the conditions under each answer, in the order of `words`.

    Behind a `lead`, where there are any.
    """
    groups = {word: [name for name, answer in answers.items() if answer == value] for value, word in words.items()}
    text = "; ".join(f"{word} {enumerated(names, most)}" for word, names in groups.items() if names)
    return lead + text if text else ""


def judged(
    claim: Claim, answers: Iterable[bool | None] | Mapping[str, bool | None], why: str, **figures: Any
) -> Verdict:
    """A verdict from answers that need no sampling: it holds where all say so, and depends where they differ.

    Answers by condition also say under which conditions it is true, in `says`, unless that is given.
    """
    if isinstance(answers, Mapping):
        figures.setdefault("says", explained(("condition",), {(key,): value for key, value in answers.items()}))
        answers = answers.values()
    else:
        answers = list(answers)
        if len(set(answers)) == 1:
            figures.setdefault("says", WORDS[answers[0]])
    return Verdict(claim.id, claim.text, Status(stats.combine(answers)), why=why, **figures)


@dataclass(frozen=True)
class Question:
    """One question under many conditions, and its answers.

    Attributes:
        name: of its table.
        by: names of the conditions' columns.
        members: condition -> comparison, corrected for its family.
        label: a condition in words: a template of the columns in `by`.
        reference: name of the column of the comparisons' references.
        counted: what n counts: seeds, networks, architectures ...
    """

    name: str
    by: tuple[str, ...]
    members: Mapping[Key, Comparison]
    label: str
    reference: str = "predicted"
    counted: str = "seeds"

    @staticmethod
    def of(
        name: str,
        by: Sequence[str],
        asked: Mapping[Key, Comparison],
        *,
        label: str,
        family: Callable[..., Hashable] = lambda **_: True,
        reference: str = "predicted",
        counted: str = "seeds",
    ) -> Question:
        """The question, its comparisons corrected for being families.

        Args:
            name: of its table.
            by: names of the conditions' columns.
            asked: condition -> comparison by itself, all at one confidence.
            label: a condition in words: a template of the columns in `by`.
            family: of a condition's columns: those that it gives one value are one family.
            reference: name of the column of the comparisons' references.
            counted: what n counts.

        Raises:
            ValueError: comparisons at several confidences, or a condition with the name of a column of the table.
        """
        if taken := {"n", "value", "deviation_se", "answer", "family", reference} & set(by):
            raise ValueError(f"question {name!r}: a condition cannot be named {min(taken)!r}, as a column is")
        if len({member.alpha for member in asked.values()}) > 1:
            raise ValueError(f"question {name!r}: its comparisons have several confidences")
        families: dict[Hashable, list[Key]] = {}
        for key in asked:
            families.setdefault(family(**dict(zip(by, key, strict=True))), []).append(key)
        corrected: dict[Key, Comparison] = {}
        for keys in families.values():
            corrected |= dict(zip(keys, stats.together(asked[key] for key in keys), strict=True))
        members = {key: corrected[key] for key in asked}
        return Question(name, tuple(by), members, label, reference, counted)

    @staticmethod
    def share(name: str, count: int, of: int, *, counted: str) -> Question:
        """Is what was counted more than half of all? An exact interval, under the one condition `pooled`."""
        asked = {(counted,): stats.coverage(count, of, 0.5)}
        return Question.of(name, ("pooled",), asked, label="all {pooled}", reference="half of them", counted=counted)

    def __bool__(self) -> bool:
        return bool(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def confidence(self) -> float:
        """That of each family's intervals together."""
        return 1 - next(iter(self.members.values())).alpha

    def where(self, **wanted: Any) -> Question:
        """The conditions with these values; a tuple stands for any of its values."""
        at = {self.by.index(name): value if isinstance(value, tuple) else (value,) for name, value in wanted.items()}
        members = {key: c for key, c in self.members.items() if all(key[i] in values for i, values in at.items())}
        return replace(self, members=members)

    def select(self, wanted: Callable[..., bool]) -> Question:
        """The conditions of which this function of their columns is true."""
        members = {key: c for key, c in self.members.items() if wanted(**dict(zip(self.by, key, strict=True)))}
        return replace(self, members=members)

    def words(self, key: Key) -> str:
        """A condition in words."""
        return self.label.format(**dict(zip(self.by, key, strict=True)))

    def read(self, reading: Callable[[Comparison], Any]) -> dict[str, Any]:
        """Condition in words -> what its comparison says."""
        return {self.words(key): reading(comparison) for key, comparison in self.members.items()}

    def listed(
        self, reading: Callable[[Comparison], Any], words: Mapping[Any, str], most: int = 4, lead: str = ""
    ) -> str:
        """The conditions under each answer: `shrinks for a, b; does neither for c and 3 more`."""
        return listed(self.read(reading), words, most, lead)

    def table(self, further: Mapping[Key, Mapping[str, Any]] | None = None) -> tuple[str, pd.DataFrame]:
        """One row a condition: its columns, n, value, ends of the interval, reference, deviation_se, answer, family.

        `deviation_se` is NaN where nothing scatters.

        Args:
            further: condition -> more columns.
        """
        rows = []
        for key, c in self.members.items():
            low, high = ends(1 - c.alpha)
            rows.append(
                {
                    **dict(zip(self.by, key, strict=True)), "n": c.effect.n, "value": c.effect.value,
                    low: c.effect.low, high: c.effect.high, self.reference: c.reference,
                    "deviation_se": c.z if abs(c.z) < _DETERMINISTIC else math.nan,
                    "answer": str(c.answer), "family": c.family, **(further or {}).get(key, {}),
                }
            )  # fmt: skip
        return self.name, pd.DataFrame(rows)

    @property
    def furthest(self) -> Key:
        """The condition furthest from its reference, in margins, finitely; those with an interval go first."""

        def distance(key: Key) -> tuple[bool, float]:
            deviation, effect = self.members[key].deviation, self.members[key].effect
            return not math.isnan(effect.low + effect.high), deviation if math.isfinite(deviation) else -1.0

        return max(self.members, key=distance)

    def verdict(
        self,
        claim: Claim,
        reading: Reading | Mapping[Any, bool | None],
        *,
        why: str,
        method: str,
        shown: Key | None = None,
        unit: str | Mapping[Key, str] = "",
        says: str = "",
    ) -> Verdict:
        """A verdict on the claim: it holds where every condition says so, and depends where they differ.

        Args:
            claim: what was asked.
            reading: what a comparison says of it; or answers by condition, or by groups of conditions, where it takes
                more than the comparison to tell.
            why: the reason, a sentence.
            method: what was measured and how the question was decided; how the interval was made is added.
            shown: the condition whose figure the verdict shows; without it the furthest from its reference. Where the
                verdict is undecided, the furthest of those that are, in place of one that is decided; where it is
                decided, of those with an interval of enough repetitions, in place of one without.
            unit: of the figures; by condition where some are ratios and others differences.
            says: under which conditions it is true, where that can be said better than by listing them.

        Raises:
            ValueError: nothing was asked, or ratios and differences are to have one unit.
        """
        if not self.members:
            raise ValueError(f"question {self.name!r} was asked under no condition")
        if isinstance(unit, str) and len({c.log for c in self.members.values()}) > 1:
            raise ValueError(f"question {self.name!r} has ratios and differences: give each condition its unit")
        answers = (
            self._keyed(reading)
            if isinstance(reading, Mapping)
            else {key: reading(c) for key, c in self.members.items()}
        )
        status = Status(stats.combine(answers.values()))
        key = shown if shown is not None and self._tells(shown, answers, status) else self._telling(answers, status)
        figure, edge = self.members[key], self._at_edge(answers)
        return Verdict(
            claim.id, claim.text, status,
            observed=figure.effect.value, low=figure.effect.low, high=figure.effect.high, predicted=figure.reference,
            unit=unit if isinstance(unit, str) else unit[key], n=figure.effect.n, counted=self.counted, table=self.name,
            condition=self.words(key) if len(self) > 1 else "",
            answer=str(figure.answer), reference=self.reference, margin=figure.margin, log=figure.log,
            says=says or self._says(answers), needed=self._needed(answers) if status is Status.INCONCLUSIVE else 0,
            why=why + (f"; {_AT_EDGE} {edge}" if edge else ""), at_edge=edge,
            method=f"{method}: {figure.effect.method}",
        )  # fmt: skip

    def _keyed(self, answers: Mapping[Any, bool | None]) -> dict[Any, bool | None]:
        """Answers by condition, where they were given by its words; those of groups of conditions stay as they are."""
        keys = {self.words(key): key for key in self.members}
        if len(keys) < len(self):  # words that tell several conditions are those of a group
            return dict(answers)
        return {keys.get(name, name): answer for name, answer in answers.items()}

    def _telling(self, answers: Mapping[Any, bool | None], status: Status) -> Key:
        """The condition whose figure carries the status: the furthest of those that do, of all where none does."""
        told = {k: c for k, c in self.members.items() if k in answers or status is not Status.INCONCLUSIVE}
        told = {key: c for key, c in told.items() if self._tells(key, answers, status)}
        return (replace(self, members=told) if told else self).furthest

    def _tells(self, key: Key, answers: Mapping[Any, bool | None], status: Status) -> bool:
        """Whether a condition's figure can carry the status: it is no more decided, and has an interval if need be."""
        if status is Status.INCONCLUSIVE:
            return answers.get(key) is None
        effect = self.members[key].effect
        return effect.n >= FEWEST and not (math.isnan(effect.low) or math.isnan(effect.high))

    def _says(self, answers: Mapping[Any, bool | None]) -> str:
        """Under which conditions it is true, by the question's own columns where the answers are theirs."""
        if answers.keys() <= self.members.keys():
            return explained(self.by, answers, self.words)
        keys = {key if isinstance(key, tuple) else (key,): answer for key, answer in answers.items()}
        return explained(self.by if all(len(key) == len(self.by) for key in keys) else (), keys)

    def _at_edge(self, answers: Mapping[Any, bool | None]) -> str:
        """The undecided conditions of which a tuned setting lies at the end of its grid; of groups, their members."""
        if None not in answers.values():
            return ""
        own = answers.keys() & self.members.keys()
        open_ones = [key for key in self.members if not own or answers.get(key, True) is None]
        told = [self.words(key) for key in open_ones if self.members[key].at_edge]
        return f"all {len(told)} conditions" if 2 < len(told) == len(self) else enumerated(told)

    def _needed(self, answers: Mapping[Any, bool | None]) -> int:
        """As many repetitions as would decide each condition that is undecided; 0 where one of them cannot tell."""
        if not answers.keys() <= self.members.keys():
            return 0
        needed = [self.members[key].needed for key, answer in answers.items() if answer is None]
        return max(needed, default=0) if all(needed) else 0

    def prediction(self, claim: Claim, what: str, *, within: str, unit: str) -> Verdict:
        """A verdict on "theory predicts it": everywhere, somewhere, or nowhere; the figure is the furthest off.

        Args:
            claim: that theory predicts it.
            what: the figures in the plural, `rates`.
            within: the margin in words, `0.02 a layer`.
            unit: of the figures.
        """
        answers = self.read(agrees)
        if len(self) == 1:
            words = {True: "the predicted one:", False: "not the predicted one:", None: "undecided:"}
            why = f"{listed(answers, words)}, within {within}"
        else:
            others = listed(answers, {False: "beyond it:", None: "undecided:"}, lead="; ")
            far = math.isfinite(self.members[self.furthest].deviation)
            why = f"{sum(map(bool, answers.values()))} of {len(self)} {what} are the predicted ones within {within}"
            why += others + (f"; the furthest from its prediction is {self.words(self.furthest)}" if far else "")
        return self.verdict(
            claim, agrees, unit=unit, says=tallied(answers, what), why=why,
            method=f"equivalence with theory, margin {within}, over {self.counted}",
        )  # fmt: skip
