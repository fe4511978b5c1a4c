"""The next step for a claim that a run left undecided, in one sentence and, where there is one, a command.

    settled = settle(verdict, study, Asked("gradient_flow", "quick"))
    settled.text       "The preset standard repeats it with 40 seeds in place of 30, which may decide it."
    settled.command    "depthgauge run gradient_flow --preset standard"

Seeds are proposed only where they count: more of them add no architecture to a claim about architectures, and no round
to a timing. How many are needed is projected from the interval (`depthgauge.stats.Comparison.needed`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from depthgauge import costs, request
from depthgauge.study import Grid, Study
from depthgauge.verdict import FEWEST, Status, Verdict

_UNDECIDED = frozenset({Status.INCONCLUSIVE, Status.NOT_MEASURED})
_TIMED = frozenset({"rounds", "turns", "blocks"})
_GIVEN = frozenset(
    {"architectures", "batch sizes", "bit patterns", "combinations", "conditions", "configurations", "counts",
     "devices", "examples", "groups", "models", "rates", "seeds that choose"}
)  # what no seed adds to  # fmt: skip
_HOPELESS = 50  # times as many repetitions, beyond which nobody waits for them


@dataclass(frozen=True)
class Settling:
    """The next step for a claim.

    Attributes:
        text: a sentence.
        command: the command line that measures it; empty where none does.
        study: the study that it runs.
        seeds: the repetitions that it asks for in place of the preset's own; None for these.
    """

    text: str
    command: str = ""
    study: str = ""
    seeds: int | None = None

    @property
    def options(self) -> str:
        """The command without the study's name and the number of seeds."""
        return self.command.replace(f" {self.study} ", " ", 1).replace(f" --seeds {self.seeds}", "", 1)


@dataclass(frozen=True)
class Asked:
    """The request of a run for a study, as far as it matters for what to ask next.

    Attributes:
        name: the study's.
        preset: which was run.
        seeds: repetitions in place of the preset's own; None for these.
        entry: the study's entry in run.json.
        device: as torch spells it.
        unfinished: whether chunks are missing, or its second stage.
        failed: number of cases without a result.
        problem: whether its analysis failed somewhere.
    """

    name: str
    preset: str
    seeds: int | None = None
    entry: Mapping[str, object] = field(default_factory=dict)
    device: str = "cpu"
    unfinished: bool = False
    failed: int = 0
    problem: bool = False

    @classmethod
    def of(cls, name: str, run: Mapping[str, Any], **more: Any) -> Asked:
        """Read what a run directory says that was asked of a study; `more` are further fields."""
        entry = run["request"].get(name, {})
        device = _device(name, str(run.get("command", "")))
        return cls(name, str(entry.get("preset", "")), entry.get("seeds"), entry, device, **more)


def settling(verdicts: Iterable[Verdict], study: Study | None, asked: Asked) -> dict[str, Settling]:
    """Tell what would settle each claim that is undecided, by its id."""
    return {verdict.id: settle(verdict, study, asked) for verdict in verdicts if verdict.status in _UNDECIDED}


def settle(verdict: Verdict, study: Study | None, asked: Asked) -> Settling:
    """Tell what would settle an undecided claim.

    Args:
        verdict: that on the claim.
        study: its study; None where its code is not at hand.
        asked: what was run.
    """
    if why := _first(verdict, study, asked):
        return Settling(why)
    assert study is not None
    if verdict.status is Status.NOT_MEASURED or not verdict.n:
        return _measuring(verdict, study, asked)
    if verdict.at_edge:
        return _widening(verdict, study, asked)
    if verdict.counted in _TIMED:
        return _timing(verdict, study, asked)
    if verdict.counted in _GIVEN or not _seeds(study, asked.preset, verdict, asked.seeds):
        return _given(verdict, study, asked)
    return _repeating(verdict, study, asked)


def _first(verdict: Verdict, study: Study | None, asked: Asked) -> str:
    """Tell what has to be done before any other run; empty where nothing has."""
    if asked.unfinished:
        return "The run is not finished: the same command, given again, goes on with it."
    if study is None:
        return "Nothing, without the study's code: name its file or folder by --studies."
    if asked.problem and not verdict.n:
        return "Nothing new has to be measured: mend what failed, and render the report again."
    return "" if asked.preset in study.presets else "The study no longer has the preset that was run: run it anew."


def outlook(settlings: Iterable[Settling]) -> tuple[Settling, ...]:
    """The commands that settle most claims, the most useful first, with how many they concern.

    Studies that the same options settle share a command; of several numbers of seeds the largest stands for all.
    """
    counted: dict[tuple[str, str], list[Settling]] = {}
    for settled in settlings:
        if settled.command:
            counted.setdefault((settled.study if settled.seeds else "", settled.options), []).append(settled)
    ordered = sorted(counted.values(), key=lambda group: -len(group))
    return tuple(_together(group) for group in ordered)


def _together(group: Sequence[Settling]) -> Settling:
    largest = max(group, key=lambda settled: settled.seeds or 0)
    names = list(dict.fromkeys(settled.study for settled in group))
    counts = f"{len(group)} undecided {'claim' if len(group) == 1 else 'claims'}"
    command = largest.command.replace(f" {largest.study} ", f" {' '.join(names)} ", 1)
    return Settling(counts, command, largest.study if len(names) == 1 else "", largest.seeds)


# -- what can be done --------------------------------------------------------------------------------------------------


def _measuring(verdict: Verdict, study: Study, asked: Asked) -> Settling:
    """For a claim without a figure."""
    here = _grids(study, asked.preset, verdict.id)
    if here and asked.failed and verdict.status is Status.NOT_MEASURED:
        return Settling("Cases failed: mend what the list of failures names, and give the same command again.")
    for preset in _larger(study, asked.preset):
        if not here and _grids(study, preset, verdict.id):
            return _proposed(f"The preset {preset} asks it", study, asked, preset)
        if here:
            return _proposed(
                f"The preset {asked.preset} is too small for it: {preset} asks it under more conditions",
                study,
                asked,
                preset,
            )
    return Settling("No larger preset of the study asks for more: it stays open here.")


def _widening(verdict: Verdict, study: Study, asked: Asked) -> Settling:
    """For a claim that a learning rate at the end of its grid leaves open."""
    text = f"It takes a wider grid of learning rates, not more seeds: a rate lies at its end for {verdict.at_edge}"
    here = _rates(study, asked.preset, verdict.id)
    for preset in _larger(study, asked.preset):
        more = _rates(study, preset, verdict.id)
        if here and more and (min(more) < min(here) or max(more) > max(here)):
            return _proposed(f"{text}. The preset {preset} has {min(more):g} to {max(more):g}", study, asked, preset)
    return Settling(f"{text}.")


def _rates(study: Study, preset: str, claim: str) -> list[float]:
    grids = _grids(study, preset, claim)
    return [float(rate) for grid in grids for rate in grid.varied.get("lr", ()) if isinstance(rate, int | float)]


def _timing(verdict: Verdict, study: Study, asked: Asked) -> Settling:
    if verdict.needed > _HOPELESS * verdict.n:
        return _hopeless(verdict.needed, verdict.n, verdict.counted)
    about = f"About {_rounded(verdict.needed):,} {verdict.counted} in place of {verdict.n:,} would decide it, if the"
    projected = f"{about} effect stays. " if verdict.needed > verdict.n else ""  # else it is not known
    text = f"{projected}Seeds do not count in a timing: an idle machine narrows its interval"
    if preset := _asking_more(verdict, study, asked):
        return _proposed(f"{text}, and the preset {preset} measures more", study, asked, preset)
    return Settling(f"{text}; no preset measures more.")


def _given(verdict: Verdict, study: Study, asked: Asked) -> Settling:
    drawn = verdict.counted != "seeds" and verdict.n > 1
    text = (
        f"It rests on {verdict.n} {verdict.counted}, to which --seeds adds none"
        if drawn
        else "More seeds will not decide it"
    )
    if preset := _asking_more(verdict, study, asked):
        return _proposed(f"{text}; the preset {preset} asks for more, which may", study, asked, preset)
    return Settling(f"{text}, and no preset asks for more.")


def _asking_more(verdict: Verdict, study: Study, asked: Asked) -> str:
    """The next preset that asks more for the claim; empty where none does."""
    here = _grids(study, asked.preset, verdict.id)
    larger = _larger(study, asked.preset)
    return next((preset for preset in larger if _grids(study, preset, verdict.id) != here), "")


def _repeating(verdict: Verdict, study: Study, asked: Asked) -> Settling:
    """For a claim that rests on seeds, or on what grows with them."""
    now = _seeds(study, asked.preset, verdict, asked.seeds)
    if verdict.n < FEWEST:
        wanted = max(FEWEST, _rounded(now * FEWEST / verdict.n))
        return _asking(f"An interval takes {FEWEST} repetitions or more", wanted, verdict, study, asked)
    if any(end is not None and math.isnan(end) for end in (verdict.low, verdict.high)):
        return Settling("Not every run has a finite figure, and more seeds leave those that have none.")
    if verdict.needed <= verdict.n:  # it is not known
        for preset in _larger(study, asked.preset):
            if (more := _seeds(study, preset, verdict)) > now:
                text = f"The preset {preset} repeats it with {more:,} seeds in place of {now:,}, which may decide it"
                return _proposed(text, study, asked, preset)
        text = "Whether seeds decide it is not known, nor how many; four times as many halve its interval"
        return _asking(text, 4 * now, verdict, study, asked)
    wanted = _rounded(now * verdict.needed / verdict.n)
    if wanted > _HOPELESS * now:
        return _hopeless(wanted, now, "seeds")
    text = f"About {wanted:,} seeds in place of {now:,} would decide it, if the effect stays"
    return _asking(text, wanted, verdict, study, asked)


def _hopeless(wanted: int, now: int, counted: str) -> Settling:
    return Settling(
        f"About {_rounded(wanted):,} {counted} would decide it, if the effect stays, {round(wanted / now):,} times as"
        " many as here: it lies too near its margin to be settled."
    )


def _asking(text: str, wanted: int, verdict: Verdict, study: Study, asked: Asked) -> Settling:
    """Propose the smallest preset with as many seeds, or else the number itself."""
    for preset in _larger(study, asked.preset):
        if (more := _seeds(study, preset, verdict)) >= wanted:
            return _proposed(f"{text}: the preset {preset} has {more:,}", study, asked, preset)
    most = max((grid.seeds for grid in study.presets[asked.preset]), default=0)
    others = f"; the study's other questions get {wanted:,}, too" if wanted < most else ""
    return _proposed(f"{text}{others}", study, asked, asked.preset, wanted)


# -- what is known of the study ----------------------------------------------------------------------------------------


def _larger(study: Study, preset: str) -> Sequence[str]:
    names = list(study.presets)
    return names[names.index(preset) + 1 :] if preset in names else names


def _grids(study: Study, preset: str, claim: str) -> tuple[Grid, ...]:
    """The preset's grids that answer the claim; as a second stage knows its own, they are those of the first."""
    grids = study.presets.get(preset, ())
    named = {name for grid in grids for name in grid.claims}
    return tuple(grid for grid in grids if claim in grid.claims or (not grid.claims and claim not in named))


def _seeds(study: Study, preset: str, verdict: Verdict, asked: int | None = None) -> int:
    """The seeds behind a claim; those of a second stage from the size of its part."""
    own = max((grid.seeds for grid in _grids(study, preset, verdict.id)), default=0)
    if not own and study.second is not None:
        own = _second(study, preset, verdict)
    return asked if asked and own else own


def _second(study: Study, preset: str, verdict: Verdict) -> int:
    for part in study.parts:
        if any(claim.id == verdict.id for claim in getattr(part, "claims", ())):
            sizes: Mapping[str, Mapping[str, object]] = getattr(part, "sizes", {})
            seeds = sizes.get(preset, {}).get("seeds")
            if isinstance(seeds, int):
                return seeds
            return verdict.n if verdict.counted == "seeds" else 0
    return 0


def _device(study: str, command: str) -> str:
    """The device in the command line that ran a study: the fingerprint has a GPU's name, which no option takes."""
    for line in re.split(r" && |\n", command):
        words = line.split()
        if study in words and "--device" in words[:-1]:
            return words[words.index("--device") + 1]
    return "cpu"


# -- words -------------------------------------------------------------------------------------------------------------


def _rounded(value: float) -> int:
    """A projection to two digits, upward."""
    whole = math.ceil(value)
    unit: int = 10 ** max(len(str(whole)) - 2, 0)
    return -(-whole // unit) * unit


def _proposed(text: str, study: Study, asked: Asked, preset: str, seeds: int | None = None) -> Settling:
    entry = {**asked.entry, "preset": preset, "seeds": seeds}
    taken = costs.estimate(study, preset, seeds)
    long = f" ({taken.words} on two cores)" if taken else ""
    return Settling(f"{text}{long}.", request.command({asked.name: entry}, asked.device), asked.name, seeds)
