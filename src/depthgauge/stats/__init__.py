"""Statistics of experiments: numbers in, numbers with their uncertainty out.

    >>> a = [0.91, 0.93, 0.90, 0.94, 0.92, 0.95]     # one value for each seed
    >>> b = [0.88, 0.90, 0.88, 0.91, 0.90, 0.91]     # the same seeds
    >>> print(paired(a, b))
    0.02833 [0.02, 0.04] (n = 6) against 0, p = 0.031: different
    >>> paired(a, b, margin=0.05).answer
    <Answer.NEGLIGIBLE: 'different, inside the margin'>

One sample gives an `Estimate`, two (or one and a prediction) a `Comparison` with its `Answer`. The rules:

- fewer than 5 independent values: points only, and every answer is `inconclusive`;
- NaN and infinity are results: nothing is dropped, and what a method cannot take leaves it without an interval,
  with the reason in `method`;
- interval and p-value of a comparison come from one test and agree;
- a margin is declared beforehand; then there are four answers: beyond it, equivalent (inside it), different but inside
  it, inconclusive. "Not significant" is never "the same", and "different from 0" is not "beyond the margin";
- comparisons that answer one question are a family: their intervals hold at once (`together`).

How each is computed, and when to use which, stands in docs/method.md.
"""

from __future__ import annotations

from depthgauge.stats.calibration import Fit, coverage, normal_pit, uniformity, variance_ratio
from depthgauge.stats.censored import censored_slope, censored_slopes, crossing
from depthgauge.stats.comparison import Answer, Comparison, against, combine, paired, unpaired
from depthgauge.stats.estimate import Estimate, mean, median, pseudo_values, quantile, rate
from depthgauge.stats.family import Family, holm, seeds_needed, together, too_few_seeds
from depthgauge.stats.survival import LogRank, Survival, earlier, log_rank, restricted_mean_difference, survival
from depthgauge.stats.tails import tail_index
from depthgauge.stats.timing import Judgement, Pace, judge, resolution, time_ratio
from depthgauge.stats.trend import Lines, band, decay_length, slopes

__all__ = [
    "Answer",
    "Comparison",
    "Estimate",
    "Family",
    "Fit",
    "Judgement",
    "Lines",
    "LogRank",
    "Pace",
    "Survival",
    "against",
    "band",
    "censored_slope",
    "censored_slopes",
    "combine",
    "coverage",
    "crossing",
    "decay_length",
    "earlier",
    "holm",
    "judge",
    "log_rank",
    "mean",
    "median",
    "normal_pit",
    "paired",
    "pseudo_values",
    "quantile",
    "rate",
    "resolution",
    "restricted_mean_difference",
    "seeds_needed",
    "slopes",
    "survival",
    "tail_index",
    "time_ratio",
    "together",
    "too_few_seeds",
    "uniformity",
    "unpaired",
    "variance_ratio",
]
