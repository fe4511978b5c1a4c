"""Restriction of a study to one model, whose parameters grids must be able to vary, and to what the machine has.

    target = factories.resolve("my_project.nets:make")
    restrict(study, "quick", target).grids              # the study's grids on that model
    restrict(study, "quick", target).not_applicable     # claims that cannot be asked of it, and why
    equip(study, "quick", "cpu").grids                  # the study's grids that need no other device

What is left out is named with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from depthgauge import environment, preflight
from depthgauge.factories import Target
from depthgauge.study import Case, Grid, Study

_NOTHING: Mapping[Case, str] = {}


@dataclass(frozen=True)
class Restricted:
    """The part of a study that runs on one model, and on this machine.

    Attributes:
        grids: the preset's grids that can be run there.
        not_applicable: claim id -> why it cannot be asked.
        left_out: why grids, or values of theirs, are not run, one reason each.
        claims: ids of the claims that the grids answer.
    """

    grids: tuple[Grid, ...]
    not_applicable: Mapping[str, str]
    left_out: tuple[str, ...]
    claims: frozenset[str] = frozenset()

    def within(self, wider: Restricted | None) -> Restricted:
        """The same, of a study that had been restricted before."""
        if wider is None:
            return self
        reasons = {**wider.not_applicable, **self.not_applicable}
        return replace(self, not_applicable=reasons, left_out=(*wider.left_out, *self.left_out))

    def joined(self, further: Restricted) -> Restricted:
        """Join both stages of a study; a claim of either is applicable."""
        claims = self.claims | further.claims
        reasons = {**further.not_applicable, **self.not_applicable}
        return Restricted(
            (*self.grids, *further.grids),
            {claim: why for claim, why in reasons.items() if claim not in claims},
            tuple(dict.fromkeys((*self.left_out, *further.left_out))),
            claims,
        )


def restrict(study: Study, preset: str, target: Target, refused: Mapping[Case, str] = _NOTHING) -> Restricted:
    """The study's grids with the target in the place of their parameter `model`, and without what it refuses.

    A pure function of its arguments. Where grids name the target, those alone are kept, so that the cases are among
    those of the unrestricted study; where none does, each is rewritten. A parameter of the architecture that the target
    lacks is left to the model (None) where the grid fixes it; where the grid varies it, the grid is not run.

    Args:
        study: the declaration.
        preset: which of its grids.
        target: the model.
        refused: the preflight's result: smallest case -> why it does not run.
    """
    rest = _unnamed(study, preset)
    listed = any(target.spec in _models(grid) for grid in study.presets[preset])
    grids: list[Grid] = []
    asked_claims: set[str] = set()  # claims
    reasons: list[tuple[str, tuple[str, ...]]] = []  # why a grid is not run, and what it would have answered
    seen: set[str] = set()  # cases
    for grid in study.presets[preset]:
        if why := _cannot(grid, target, listed=listed):
            reasons.append((why, grid.claims or rest))
            continue
        left = preflight.without(study, _rewritten(grid, target), target.spec, refused)
        reasons += [(why, grid.claims or rest) for why in left.why]
        if left.grid is None:
            continue
        asked_claims |= {*(grid.claims or rest)}
        ids = {case.id for case in left.grid.cases()}
        if not ids <= seen:  # grids that differed in what the target lacks are one now
            grids.append(left.grid)
            seen |= ids
    return _result(study, grids, reasons, asked_claims)


def equip(study: Study, preset: str, device: str) -> Restricted | None:
    """The study's grids without those that need what a run on this device has not; None where none does.

    Args:
        study: the declaration.
        preset: which of its grids.
        device: as torch spells it.
    """
    rest = _unnamed(study, preset)
    there = {need: environment.has(need, device) for need in {grid.needs for grid in study.presets[preset]}}
    grids = [grid for grid in study.presets[preset] if there[grid.needs]]
    lacking = [grid for grid in study.presets[preset] if not there[grid.needs]]
    reasons = [
        (f"{_named(grid.needs)} would be needed, and this run is on {device}", grid.claims or rest) for grid in lacking
    ]
    asked = {claim for grid in grids for claim in grid.claims or rest}
    return _result(study, grids, reasons, asked) if lacking else None


def _named(need: str) -> str:
    """`a CUDA device`, `2 CUDA devices`."""
    count = int(need.partition(":")[2] or 1)
    return "a CUDA device" if count == 1 else f"{count} CUDA devices"


def _unnamed(study: Study, preset: str) -> tuple[str, ...]:
    """The claims that a grid without any answers."""
    named = {claim for grid in study.presets[preset] for claim in grid.claims}
    return tuple(claim.id for claim in study.claims if claim.id not in named)


def _result(
    study: Study, grids: Sequence[Grid], reasons: Sequence[tuple[str, tuple[str, ...]]], asked: Set[str]
) -> Restricted:
    return Restricted(
        tuple(grids),
        {
            claim.id: "; ".join(dict.fromkeys(why for why, claims in reasons if claim.id in claims))
            for claim in study.claims
            if claim.id not in asked and any(claim.id in claims for _, claims in reasons)
        },
        tuple(dict.fromkeys(why for why, _ in reasons)),
        frozenset(asked),
    )


def _models(grid: Grid) -> tuple[object, ...]:
    return grid.varied.get("model", ()) or ((grid.fixed["model"],) if "model" in grid.fixed else ())


def _lacking(grid: Grid, target: Target) -> list[str]:
    return [name for name in grid.architecture if not target.takes(name)]


def _cannot(grid: Grid, target: Target, *, listed: bool) -> str:
    """Give the reason why a grid is not run on the target; empty where it is."""
    if not _models(grid):
        return "the study measures networks of its own, which no other model can replace"
    varied = [name for name in _lacking(grid, target) if len(grid.varied.get(name, ())) > 1]
    if varied:
        names = " or ".join(map(repr, varied))
        return f"{target.spec} has no parameter {names}, which the study varies"
    if listed and target.spec not in _models(grid):
        return f"the study measures models other than {target.spec}"
    if target.input and not grid.any_input:
        return f"the study uses data of its own, which {target.input.source} cannot replace"
    return ""


def _rewritten(grid: Grid, target: Target) -> Grid:
    varied = {name: (target.spec,) if name == "model" else values for name, values in grid.varied.items()}
    fixed = {name: target.spec if name == "model" else value for name, value in grid.fixed.items()}
    for name in _lacking(grid, target):
        if name in varied:
            varied[name] = (None,)
        else:
            fixed[name] = None
    if target.input:
        fixed["input"] = str(target.input)
    return replace(grid, varied=varied, fixed=fixed)
