"""The step model of measured rows: links and figures fitted at the middle sizes, and questions to what was held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from depthgauge import stats
from depthgauge.frames import groups
from depthgauge.parallel import Link, StepModel
from depthgauge.parallel.collectives import bus_share
from depthgauge.parallel.links import fit as fit_link
from depthgauge.parallel.prediction import REDUCTIONS
from depthgauge.parallel.prediction import fit as fit_step
from depthgauge.questions import Question, spelled
from depthgauge.stats import Estimate
from depthgauge.studies.data_parallel.model_ranks import buckets
from depthgauge.theory import Collective
from depthgauge.verdict import Sentence

MARGIN = 1.25  # a factor within which a prediction is right
STEP, REDUCED = "step", "all_reduce"
HELD_SIZES = 1  # smallest and largest sizes of collectives that are held out, of each

Timings = Mapping[tuple[Any, ...], pd.Series]


def role(value: float, values: Sequence[float], most: int = 1) -> str:
    """`fitted` in the middle of the ascending values, `held out` among the `most` first and last."""
    return "held out" if value in (*values[:most], *values[-most:]) else "fitted"


@dataclass(frozen=True)
class Fitted:
    """The model, and the timings that it is fitted to and held against.

    Attributes:
        model: of a step, on the fewest ranks.
        links: by collective.
        ranks: fewest, on which all was fitted.
        room: ranks that have a core or a device each.
        steps: (ranks, batch a rank, reduction) -> seconds by round.
        moved: (collective, bytes) -> seconds by round.
    """

    model: StepModel
    links: Mapping[str, Link]
    ranks: int
    room: int
    steps: Timings
    moved: Timings

    @staticmethod
    def of(timed: pd.DataFrame, size: float, room: int) -> Fitted | None:
        """The model of timings with columns work, ranks, size, reduction, value; None where parts of it failed."""
        ranks = int(timed["ranks"].min())
        own = timed[timed["work"] == STEP]
        steps = {
            (int(p), int(b), way): part["value"] for (p, b, way), part in groups(own, ["ranks", "size", "reduction"])
        }
        moved = {
            (name, int(count)): part["value"]
            for (name, count), part in groups(timed[timed["work"] != STEP], ["work", "size"])
        }
        links = {name: _link(name, moved, ranks) for name in dict.fromkeys(name for name, _ in moved)}
        batches = sorted({batch for p, batch, _ in steps if p == ranks})
        rows = [
            {"devices": p, "batch": p * batch, "reduction": way, "seconds": _mean(seconds)}
            for (p, batch, way), seconds in steps.items()
            if p == ranks and role(batch, batches) == "fitted"
        ]
        if REDUCED not in links or {row["reduction"] for row in rows} != set(REDUCTIONS):
            return None
        model = fit_step(pd.DataFrame(rows), gradient_bytes=size, buckets=buckets(size), link=links[REDUCED])
        return Fitted(model, links, ranks, room, steps, moved)

    def crowd(self, ranks: int) -> float:
        """Times that computing lasts as long on so many ranks as on those fitted, as cores are shared."""
        return max(1.0, ranks / self.room) / max(1.0, self.ranks / self.room)

    def predicted(self, ranks: int, batch: int, reduction: str) -> Estimate:
        """Seconds of a step with `batch` examples on each rank of this machine."""
        return self.model.paced(self.crowd(ranks)).step(ranks, ranks * batch, reduction)

    def placed(self, ranks: int) -> str:
        """`2 ranks`, `4 ranks on 2 cores (oversubscribed)`."""
        return f"{ranks} ranks" + (f" on {self.room} cores (oversubscribed)" if ranks > self.room else "")

    def crowded(self, question: Question) -> str:
        """`, 4 ranks on 2 cores (oversubscribed),` where steps are of ranks that share cores; else empty."""
        shared = sorted({ranks for ranks, _ in question.members if ranks > self.room})
        return f", {' and '.join(map(self.placed, shared))}," if shared else ""

    def told(self, *, beyond: bool) -> str:
        """Words for what was fitted."""
        told = f"fitted to {self.model.freedom + 4} configurations of {self.ranks} ranks"
        shared = [
            f"{self.placed(ranks)}, for which computing is taken to last {self.crowd(ranks):g} times as long"
            for ranks in sorted({ranks for ranks, _, _ in self.steps})
            if ranks > max(self.room, self.ranks)
        ]
        return "; ".join((told, *shared)) if beyond else told

    # -- tables --------------------------------------------------------------------------------------------------------

    def links_table(self) -> pd.DataFrame:
        """One row a collective: alpha, beta, misfit."""
        return pd.DataFrame(
            {"collective": name, "ranks": self.ranks, **spelled("alpha", link.alpha), **spelled("beta", link.beta),
             **spelled("bandwidth", link.bandwidth), "misfit": link.misfit, "n": link.alpha.n}
            for name, link in self.links.items()
        )  # fmt: skip

    def figures_table(self) -> pd.DataFrame:
        """One row a figure of the model."""
        named = {
            "computing, fixed": self.model.fixed, "computing, an example": self.model.example,
            "handling of gradients": self.model.handling, "overlap": self.model.overlap,
            "exchange": self.model.exchange(self.ranks),
        }  # fmt: skip
        rows: list[dict[str, Any]] = [
            {"figure": name, **spelled("value", each), "unit": each.unit} for name, each in named.items()
        ]
        return pd.DataFrame([*rows, {"figure": "misfit", "value": self.model.misfit, "unit": "sd of ln"}])

    def collectives_table(self) -> pd.DataFrame:
        """Measured and predicted seconds, and both bandwidths, of each size."""
        return pd.DataFrame(
            {
                "collective": name, "bytes": size, **_measured(seconds),
                **spelled("predicted", self._moved(name, size)), "role": role(size, self._sizes(name), HELD_SIZES),
                "algorithm_bandwidth": size / _mean(seconds),
                "bus_bandwidth": bus_share(name, self.ranks) * size / _mean(seconds),
            }
            for (name, size), seconds in self.moved.items()
        )  # fmt: skip

    def steps_table(self) -> pd.DataFrame:
        """Measured and predicted seconds of each configuration."""
        return pd.DataFrame(
            {
                "ranks": ranks, "placed": self.placed(ranks), "batch": batch, "reduction": way, **_measured(seconds),
                **spelled("predicted", self.predicted(ranks, batch, way)), "role": self._role(ranks, batch),
            }
            for (ranks, batch, way), seconds in self.steps.items()
        )  # fmt: skip

    def speedup_table(self) -> pd.DataFrame:
        """Speed-up over plain steps at the same batch a rank, measured and predicted, ends of both steps together."""
        rows = []
        for ranks, batch, way in self.steps:
            if way != "overlapped" or (self.ranks, batch, "none") not in self.steps:
                continue
            plain, own = (_measured(self.steps[key]) for key in ((self.ranks, batch, "none"), (ranks, batch, way)))
            crowd = self.crowd(ranks)
            efficiency = self.model.paced(crowd).efficiency(ranks, ranks * batch)
            rows.append({
                "batch": batch, "ranks": ranks, "n": own["n"], "value": ranks * plain["value"] / own["value"],
                "low_95": ranks * plain["low_95"] / own["high_95"], "high_95": ranks * plain["high_95"] / own["low_95"],
                "predicted": ranks / crowd * efficiency.value, "predicted_low_95": ranks / crowd * efficiency.low,
                "predicted_high_95": ranks / crowd * efficiency.high, "oversubscribed": ranks > self.room,
            })  # fmt: skip
        return pd.DataFrame(rows)

    # -- questions -----------------------------------------------------------------------------------------------------

    def collectives_held_out(self) -> Question:
        """Are the sizes that were held out as predicted?"""
        asked = {
            (name, size): _against(seconds, self._moved(name, size))
            for (name, size), seconds in self.moved.items()
            if role(size, self._sizes(name), HELD_SIZES) == "held out"
        }
        label = "{collective} of {bytes:,} bytes"
        return Question.of("collectives_held_out", ("collective", "bytes"), asked, label=label, counted="rounds")

    def steps_held_out(self, *, beyond: bool) -> Question:
        """Are the batch sizes, or all sizes on more ranks (`beyond`), as predicted?"""
        asked = {
            (ranks, batch): _against(self.steps[ranks, batch, way], self.predicted(ranks, batch, way))
            for ranks, batch, way in self.steps
            if self._role(ranks, batch) == "held out" and (ranks > self.ranks) == beyond
        }
        name, label = f"{'ranks' if beyond else 'batches'}_held_out", "batch {batch} on each of {ranks} ranks"
        return Question.of(name, ("ranks", "batch"), asked, label=label, counted="rounds")

    def intervals(self, question: Question) -> dict[Any, dict[str, Any]]:
        """The prediction's interval of each member of a question of steps, and whether it holds the median."""
        found = {}
        for (ranks, batch), member in question.members.items():
            predicted = self.predicted(ranks, batch, "overlapped")
            ends = {"predicted_low_95": predicted.low, "predicted_high_95": predicted.high}
            inside = predicted.contains(member.effect.value)
            found[ranks, batch] = {**ends, "inside": inside, "oversubscribed": ranks > self.room}
        return found

    def _sizes(self, name: str) -> list[int]:
        return sorted(size for other, size in self.moved if other == name)

    def _moved(self, name: str, size: int) -> Estimate:
        return self.links[name].time(cast("Collective", name), size, self.ranks)

    def _role(self, ranks: int, batch: int) -> str:
        batches = sorted({each for p, each, _ in self.steps if p == self.ranks})
        return "held out" if ranks > self.ranks else role(batch, batches)


def _link(name: str, moved: Timings, ranks: int) -> Link:
    """The line through the middle sizes of a collective."""
    every = sorted(size for other, size in moved if other == name)
    sizes = [size for size in every if role(size, every, HELD_SIZES) == "fitted"]
    seconds = [_mean(moved[name, size]) for size in sizes]
    return fit_link(sizes, seconds, ranks, collective=cast("Collective", name), name="this machine")


def _mean(seconds: pd.Series) -> float:
    return stats.mean(seconds, log=True).value


def _measured(seconds: pd.Series) -> dict[str, Any]:
    middle = stats.mean(seconds, log=True)
    return {"n": middle.n, "value": middle.value, "low_95": middle.low, "high_95": middle.high}


def _against(seconds: pd.Series, predicted: Estimate) -> stats.Comparison:
    return stats.against(seconds, predicted.value, log=True, margin=MARGIN)


def sentences(fitted: Fitted) -> Iterator[Sentence]:
    """A sentence on what was fitted."""
    model = fitted.model
    yield Sentence(
        f"On {fitted.placed(fitted.ranks)} a step exchanges gradients for "
        f"{_told(model.exchange(fitted.ranks), 1e3)} ms and computes for {_told(model.example, 1e6)} µs an example."
    )


def _told(estimate: Estimate, factor: float) -> str:
    return " ".join(
        form.format(factor * end)
        for form, end in zip(
            ("{:.3g}", "[{:.3g},", "{:.3g}]"), (estimate.value, estimate.low, estimate.high), strict=True
        )
    )
