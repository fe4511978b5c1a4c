"""The small picture of a verdict: its interval against what it is held against, and the margin that does not matter."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from depthgauge.verdict import Verdict

WIDTH, HEIGHT = 240, 26
_EDGE = 10  # left free at both ends, for arrows
_MIDDLE = HEIGHT / 2
_FURTHEST = 6  # margins from the reference; what lies beyond is cut off, with an arrow

_ELEMENTS = {
    "axis": '<path class="axis" d="M0 {y}H{width}"/>',
    "band": '<rect class="band" x="{x}" width="{size}" y="3" height="20"/>',
    "predicted": '<path class="predicted" d="M{x} 2V24"/>',
    "reference": '<path class="reference" d="M{x} 2V24"/>',
    "interval": '<path class="interval" d="M{x} {y}H{end}"/>',
    "point": '<circle class="point" cx="{x}" cy="{y}" r="4.5"/>',
    "left": '<path class="beyond" d="M8 7L1 {y}L8 19Z"/>',
    "right": '<path class="beyond" d="M232 7L239 {y}L232 19Z"/>',
}


def strip(verdict: Verdict) -> Markup:
    """Draw the verdict's effect as inline SVG; empty where it has no interval, or nothing to see it against.

    Factors lie on a logarithmic scale. What is far beyond the margin is cut off, and an arrow says so.
    """
    place = _scale(verdict)
    if place is None or verdict.observed is None or verdict.low is None or verdict.high is None:
        return Markup("")
    low, observed, high = (place(value) for value in (verdict.low, verdict.observed, verdict.high))
    parts = [_element("axis", width=WIDTH)]
    if verdict.predicted is not None:
        left, right = (min(max(place(end), 0), WIDTH) for end in _around(verdict.predicted, verdict))
        parts += [_element("band", x=left, size=right - left)] * (right > left)
        parts.append(
            _element("predicted" if verdict.reference == "predicted" else "reference", x=place(verdict.predicted))
        )
    parts.append(_element("interval", x=_inside(low), end=_inside(high)))
    parts += [_element("left")] * (low < 0) + [_element("right")] * (high > WIDTH)
    parts += [_element("point", x=observed)] * (0 <= observed <= WIDTH)
    picture = Markup('<svg class="strip" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>')
    return picture.format(WIDTH, HEIGHT, Markup("").join(parts))


def _scale(verdict: Verdict) -> Callable[[float], float] | None:
    """Value -> place on the strip, which may lie beyond it; None where there is nothing to compare."""

    def plain(value: float) -> float:
        if not verdict.log:
            return value
        return math.log(value) if value > 0 else -math.inf

    measured = [plain(value) for value in (verdict.observed, verdict.low, verdict.high) if value is not None]
    if len(measured) < 3 or any(map(math.isnan, measured)) or not math.isfinite(measured[0]):
        return None
    finite = [value for value in measured if math.isfinite(value)]
    middle = (min(finite) + max(finite)) / 2 if verdict.predicted is None else plain(verdict.predicted)
    reach = max(abs(value - middle) for value in finite)
    if verdict.predicted is not None and verdict.margin:
        margin = max(abs(plain(end) - middle) for end in _around(verdict.predicted, verdict))
        reach = min(max(reach, 1.5 * margin), _FURTHEST * margin)
    if not reach or not math.isfinite(reach):
        return None
    half = WIDTH / 2 - _EDGE
    return lambda value: WIDTH / 2 + half * (plain(value) - middle) / reach


def _around(reference: float, verdict: Verdict) -> tuple[float, float]:
    """The ends of the margin around the reference."""
    margin = verdict.margin or 0.0
    if verdict.log:
        return (reference / margin, reference * margin) if margin > 0 else (reference, reference)
    return reference - margin, reference + margin


def _inside(place: float) -> float:
    return min(max(place, 4), WIDTH - 4)


def _element(name: str, **places: float) -> Markup:
    spelled = {key: f"{value:.1f}".rstrip("0").rstrip(".") for key, value in {"y": _MIDDLE, **places}.items()}
    return Markup(_ELEMENTS[name]).format(**spelled)  # noqa: S704 -- markup of this module, numbers alone are filled in
