"""Comparison of two samples, or of a sample and a prediction: an effect, its interval, and the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats.estimate import Estimate, summary
from depthgauge.stats.location import (
    EXACT_UP_TO,
    Floats,
    Location,
    Student,
    level,
    logarithm,
    order,
    points,
    sample,
    scatter,
    sign_flip,
    student,
    too_little,
)

Test = Literal["auto", "sign-flip", "t", "median"]


class Answer(StrEnum):
    """The answer of a comparison. "Not significant" is never "the same"."""

    DIFFERENT = "different"  # from the reference; no margin was declared
    BEYOND = "beyond the margin"
    EQUIVALENT = "equivalent"  # inside the margin
    NEGLIGIBLE = "different, inside the margin"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """An effect, held against a reference.

    Attributes:
        effect: a difference, a ratio, or the figure that was predicted, with its interval.
        reference: the effect's value if there is nothing to see: 0, 1, or the prediction.
        p: two-sided p-value of "the effect is the reference" (with a resolution: "no further from it than that").
        z: (effect - reference) in standard errors of the effect; NaN where the method has none.
        alpha: 1 - confidence; the level of all tests, and that of the whole family.
        margin: the largest deviation that does not matter, declared beforehand; a factor on the log scale.
        p_equivalent: p-value of "the effect is outside the margin": two one-sided tests (Schuirmann 1987, J.
            Pharmacokinet. Biopharm. 15, 657); at most alpha exactly where the 1 - 2 alpha interval is
            inside the margin.
        p_beyond: two-sided p-value of "the effect is inside the margin"; at most alpha exactly where the 1 - alpha
            interval lies outside it.
        family: how many comparisons were asked together: every p-value counts so many times (Bonferroni), and the
            interval is one of so many that hold at once (`together`).
        log: whether effect, reference and margin are factors.
        at: the effect with its interval at another confidence.
        at_edge: whether a setting at the end of its grid keeps it open, which no number of repetitions changes.
    """

    effect: Estimate
    reference: float
    p: float
    z: float
    alpha: float
    margin: float | None
    p_equivalent: float
    p_beyond: float
    family: int = 1
    log: bool = False
    at: Callable[[float], Estimate] | None = field(default=None, repr=False, compare=False)
    at_edge: bool = False

    @property
    def deviation(self) -> float:
        """Distance of the effect from the reference, in margins where one was declared; on the log scale by factor."""
        value, reference = self.effect.value, self.reference
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = float(abs(np.log(value / reference) if self.log else value - reference))
        if not self.margin or (self.log and self.margin == 1):
            return distance
        return distance / (math.log(self.margin) if self.log else self.margin)

    @property
    def needed(self) -> int:
        """Project how many repetitions decide it four times of five, if the effect stays and intervals shrink alike.

        0 where it is decided, and where nothing can be said: without a finite interval or a p-value, as where something
        else than the number of repetitions keeps it open, or with the effect at the edge of the margin (within a
        hundredth of the interval's width), where no number of them decides.
        """
        if self.inside or self.beyond or self.effect.n < 2 or math.isnan(self.p):
            return 0
        scale = math.log if self.log else float
        low, value, high = self.effect.low, self.effect.value, self.effect.high
        if not all(map(math.isfinite, (low, value, high))) or (self.log and min(low, value, self.reference) <= 0):
            return 0
        margin = scale(self.margin) if self.margin else 0.0
        deviation = scale(value) - scale(self.reference)
        half = max(scale(high) - scale(value), scale(value) - scale(low))
        distance = abs(abs(deviation) - margin)
        if not half or distance < half / 50:
            return 0
        normal = NormalDist()
        power = 1 + normal.inv_cdf(0.8) / normal.inv_cdf(1 - self.alpha / (2 * self.family))
        return max(math.ceil(self.effect.n * (half * power / distance) ** 2), self.effect.n + 1)

    @property
    def p_adjusted(self) -> float:
        """`p`, times the size of the family."""
        return self.p if math.isnan(self.p) else min(1.0, self.family * self.p)

    @property
    def differs(self) -> bool:
        """Tell whether the difference from the reference is established, even one inside the margin."""
        return self.family * self.p <= self.alpha

    @property
    def inside(self) -> bool:
        """Tell whether the effect is established to be inside the margin."""
        return self.family * self.p_equivalent <= self.alpha

    @property
    def beyond(self) -> bool:
        """Tell whether the effect is established to be outside the margin; without a margin, to differ at all."""
        return self.differs if self.margin is None else self.family * self.p_beyond <= self.alpha

    @property
    def answer(self) -> Answer:
        """The answer, in which a difference counts beyond the margin, where one was declared."""
        if self.inside:
            return Answer.NEGLIGIBLE if self.differs else Answer.EQUIVALENT
        if self.beyond:
            return Answer.DIFFERENT if self.margin is None else Answer.BEYOND
        return Answer.INCONCLUSIVE

    @property
    def negligible(self) -> bool:
        """Different from the reference, and yet inside the margin."""
        return self.inside and self.differs

    @property
    def above(self) -> bool:
        """Above the reference: beyond the margin, or different where none was declared."""
        return self.beyond and self.effect.value > self.reference

    @property
    def below(self) -> bool:
        """Below the reference: beyond the margin, or different where none was declared."""
        return self.beyond and self.effect.value < self.reference

    def __str__(self) -> str:
        text = f"{self.effect} against {self.reference:.4g}"
        if not math.isnan(self.p):
            text += f", p = {self.p:.2g}"
            text += f" ({self.p_adjusted:.2g} among {self.family})" if self.family > 1 else ""
        return f"{text}: {self.answer}"


def compare(
    location: Location,
    *,
    reference: float,
    margin: float | None,
    confidence: float,
    log: bool = False,
    resolution: float | None = None,
    unit: str = "",
) -> Comparison:
    """Compare a location with a reference: the last step of every function below.

    With `log`, the location is one of logarithms, margin and resolution are factors above 1, and the comparison comes
    back from the log scale. `resolution` is the deviation that the instrument itself shows where there is none:
    a difference must exceed it, and a margin below it can show nothing.

    Raises:
        ValueError: a margin or a resolution that is none; a confidence that is none.
    """
    alpha, at = level(confidence), math.log(reference) if log else reference
    reach = _reach(margin, "margin", log=log)
    blur = _reach(resolution, "resolution", log=log) if resolution is not None else 0.0
    p = 2 * min(location.p_above(at + blur), location.p_below(at - blur))
    p_equivalent = math.nan
    if not math.isnan(reach) and reach >= blur:
        p_equivalent = max(location.p_above(at - reach), location.p_below(at + reach))
    p = math.nan if math.isnan(p) else min(1.0, p)
    excess, error = location.value - at, location.standard_error
    z = (
        0.0
        if excess == 0 or (error == 0 and p == 1)
        else math.copysign(math.inf, excess)
        if error == 0
        else excess / error
    )
    p_beyond = math.nan
    if not math.isnan(reach):
        far = max(reach, blur)
        p_beyond = 2 * min(location.p_above(at + far), location.p_below(at - far))

    def effect(confidence: float) -> Estimate:
        estimate = summary(location, confidence, log=log, unit=unit)
        if not estimate.has_interval or blur > 0:
            return estimate
        return _agreeing(estimate, reference, rejected=p <= level(confidence))

    return Comparison(effect(confidence), reference, p, z, alpha, margin, p_equivalent, p_beyond, log=log, at=effect)


def _agreeing(effect: Estimate, reference: float, *, rejected: bool) -> Estimate:
    """Make the interval agree with the test where rounding alone parts an end from the reference (exp(log(x)))."""
    if not rejected:
        return replace(effect, low=min(effect.low, reference), high=max(effect.high, reference))
    if not effect.contains(reference):
        return effect
    if effect.value > reference:
        return replace(effect, low=math.nextafter(reference, math.inf))
    return replace(effect, high=math.nextafter(reference, -math.inf))


def _reach(size: float | None, what: str, *, log: bool) -> float:
    if size is None:
        return math.nan
    if log:
        if not size >= 1:
            raise ValueError(f"on the log scale a {what} is a factor of at least 1, such as 1.1; got {size!r}")
        return math.log(size)
    if not size >= 0:
        raise ValueError(f"a {what} is a size, zero or more; got {size!r}")
    return float(size)


def _locate(x: Floats, test: Test) -> Location:
    if test == "median":
        return order(x)
    if test == "t" or (test == "auto" and len(x) > EXACT_UP_TO):
        return student(x)
    if test not in {"auto", "sign-flip"}:
        raise ValueError(f"test is 'auto', 'sign-flip', 't' or 'median'; got {test!r}")
    if len(x) > EXACT_UP_TO:
        raise ValueError(f"sign flips are enumerated up to {EXACT_UP_TO} values; with {len(x)} use test='t'")
    return sign_flip(x)


def paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    log: bool = False,
    margin: float | None = None,
    resolution: float | None = None,
    confidence: float = 0.95,
    test: Test = "auto",
    unit: str = "",
) -> Comparison:
    """Compare a with b, pair by pair (same seed): mean of a - b, or with `log` the geometric mean of a / b.

    A pair without a finite difference leaves no mean and the answer `inconclusive`; test="median" takes infinite
    differences. Zeros are -inf on the log scale.

    Args:
        a: shape (n,).
        b: shape (n,), in the same order.
        log: compare ratios; for positive skewed figures.
        margin: the largest difference (a factor with `log`) that does not matter.
        resolution: deviation that the instrument shows where there is no difference; see `compare`.
        confidence: 1 - alpha.
        test: "auto": exact sign flips up to 16 pairs, then Student's t. "median": median of the differences, exact
            sign test, its interval by order statistics.
        unit: unit of a and b.

    Raises:
        ValueError: not two samples of one length; negative values with `log`; an unknown test.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need two samples of one length; got shapes {first.shape} and {second.shape}")
    if log:
        first, second = logarithm(first), logarithm(second)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: both diverged, no difference to be had
        differences = sample(first - second)
    return compare(
        _locate(differences, test),
        reference=1.0 if log else 0.0,
        margin=margin,
        resolution=resolution,
        confidence=confidence,
        log=log,
        unit="" if log else unit,
    )


def unpaired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    log: bool = False,
    margin: float | None = None,
    confidence: float = 0.95,
    unit: str = "",
) -> Comparison:
    """Compare two independent groups, of unequal spread: mean(a) - mean(b), Welch's t (Welch 1947, Biometrika 34, 28).

    With `log` the ratio of geometric means. Each group needs 5 finite values. `n` is that of both together.

    Args:
        a: shape (n_a,).
        b: shape (n_b,).
        log: compare ratios.
        margin: the largest difference (a factor with `log`) that does not matter.
        confidence: 1 - alpha.
        unit: unit of a and b.

    Raises:
        ValueError: not one-dimensional; negative values with `log`.
    """
    first, second = (sample(logarithm(x) if log else x) for x in (a, b))
    return compare(
        _welch(first, second),
        reference=1.0 if log else 0.0,
        margin=margin,
        confidence=confidence,
        log=log,
        unit="" if log else unit,
    )


def _welch(a: Floats, b: Floats) -> Location:
    if reason := too_little(a) or too_little(b):
        bare = points(a, reason)
        return replace(bare, value=bare.value - points(b, reason).value, n=len(a) + len(b))
    (mean_a, sd_a, rounding_a), (mean_b, sd_b, rounding_b) = scatter(a), scatter(b)
    error_a, error_b = sd_a / math.sqrt(len(a)), sd_b / math.sqrt(len(b))
    error = math.hypot(error_a, error_b)
    # Welch-Satterthwaite, in shares of the error, so that tiny spreads do not underflow.
    df = math.inf if error == 0 else 1 / ((error_a / error) ** 4 / (len(a) - 1) + (error_b / error) ** 4 / (len(b) - 1))
    return Student(
        mean_a - mean_b, error, df, len(a) + len(b), "mean difference, Welch t", 1 / math.comb(len(a) + len(b), len(a)),
        rounding_a + rounding_b,
    )  # fmt: skip


def against(
    x: ArrayLike,
    predicted: float,
    *,
    sd: float | None = None,
    log: bool = False,
    margin: float | None = None,
    confidence: float = 0.95,
    test: Test = "t",
    unit: str = "",
) -> Comparison:
    """Hold a sample against a predicted mean (test="median": median). `z` is the deviation in standard errors.

    Args:
        x: shape (n,).
        predicted: theory's value, in the unit of `x`.
        sd: the standard deviation of one value, where theory has that too (of log x with `log`); the normal law then
            replaces Student's t.
        log: geometric mean against the prediction.
        margin: the largest deviation (a factor with `log`) that does not matter.
        confidence: 1 - alpha.
        test: as in `paired`.
        unit: unit of `x`.

    Raises:
        ValueError: not one-dimensional; a prediction that is not finite, or not positive with `log`; `sd` not positive.
    """
    if not math.isfinite(predicted) or (log and predicted <= 0):
        raise ValueError(f"a prediction is a finite {'positive ' if log else ''}number; got {predicted!r}")
    values = sample(logarithm(x) if log else x)
    if sd is None:
        location = _locate(values, test)
    elif sd > 0 and test == "t":
        location = student(values, sd)
    else:
        raise ValueError(f"a predicted standard deviation is positive and goes with test='t'; got {sd!r}, {test!r}")
    return compare(location, reference=float(predicted), margin=margin, confidence=confidence, log=log, unit=unit)


def combine(conditions: Iterable[bool | None]) -> Literal["holds", "fails", "depends", "inconclusive"]:
    """One status for a claim that was asked under several conditions.

    Each condition says whether the claim was seen to hold (True), seen to fail (False), or is undecided (None).
    Some of each: it depends, whatever the undecided ones would say. All of one kind: holds, or fails. Otherwise, and
    where nothing was asked, it is inconclusive.
    """
    answers = list(conditions)
    if True in answers and False in answers:
        return "depends"
    if None in answers or not answers:
        return "inconclusive"
    return "holds" if True in answers else "fails"
