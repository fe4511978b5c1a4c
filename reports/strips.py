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
    """Draw the verdict's effect as inline SVG; empty where it has none, or nothing to see it against.

    Factors lie on a logarithmic scale. What is far beyond the margin is cut off, and an arrow says so.
    """
    scale = _scale(verdict)
    if scale is None:
        return Markup("")
    place, shown = scale
    parts = [_element("axis", width=WIDTH)]
    if verdict.predicted is not None and shown(verdict.predicted):
        reference = verdict.predicted
        if verdict.margin:
            ends = _around(reference, verdict)
            left, right = (min(max(place(end), 0), WIDTH) for end in ends)
            parts.append(_element("band", x=left, size=max(right - left, 1)))
        parts.append(_element("predicted" if verdict.reference == "predicted" else "reference", x=place(reference)))
    values = [value for value in (verdict.low, verdict.observed, verdict.high) if value is not None and shown(value)]
    places = [place(value) for value in values]
    if verdict.low is not None and verdict.high is not None and len(places) == 3:
        parts.append(_element("interval", x=_inside(places[0]), end=_inside(places[2])))
    parts += [_element("left")] * (min(places) < 0) + [_element("right")] * (max(places) > WIDTH)
    if verdict.observed is not None and shown(verdict.observed) and 0 <= place(verdict.observed) <= WIDTH:
        parts.append(_element("point", x=place(verdict.observed)))
    picture = '<svg class="strip" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>'
    return Markup(picture).format(WIDTH, HEIGHT, Markup("").join(parts))


def _scale(verdict: Verdict) -> tuple[Callable[[float], float], Callable[[float], bool]] | None:
    """Value -> place on the strip, and whether a value has a place; None where there is nothing to compare."""

    def shown(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not verdict.log)

    def plain(value: float) -> float:
        return math.log(value) if verdict.log else value

    measured = [value for value in (verdict.observed, verdict.low, verdict.high) if value is not None and shown(value)]
    reference = verdict.predicted if verdict.predicted is not None and shown(verdict.predicted) else None
    if verdict.observed is None or not measured or (reference is None and len(set(measured)) < 2):
        return None
    if reference is None:
        low, high = plain(min(measured)), plain(max(measured))
        middle, reach = (low + high) / 2, (high - low)
    else:
        middle = plain(reference)
        reach = max(abs(plain(value) - middle) for value in measured)
        margin = max(abs(plain(end) - middle) for end in _around(reference, verdict)) if verdict.margin else 0.0
        reach = min(max(reach, 1.5 * margin), _FURTHEST * margin) if margin else reach
    if not reach or not math.isfinite(reach):
        return None
    half = WIDTH / 2 - _EDGE
    return (lambda value: WIDTH / 2 + half * (plain(value) - middle) / reach), shown


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
