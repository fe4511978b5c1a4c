"""The small picture of a verdict."""

import math
import re
from dataclasses import replace

import pytest

from depthgauge.reports.strips import WIDTH, strip
from depthgauge.verdict import Status, Verdict

BASE = Verdict("a", "b", Status.HOLDS, observed=0.1, low=0.05, high=0.15, predicted=0.0, margin=0.2, n=8)


def points(picture):
    return [float(place) for place in re.findall(r'cx="([\d.]+)"', picture)]


def test_the_reference_is_in_the_middle_with_its_margin_around_it():
    picture = strip(BASE)
    assert f'class="predicted" d="M{WIDTH / 2:.0f} ' in picture
    [(left, size)] = re.findall(r'class="band" x="([\d.]+)" width="([\d.]+)"', picture)
    assert float(left) + float(size) / 2 == pytest.approx(WIDTH / 2, abs=0.1)
    [point] = points(picture)
    assert point == pytest.approx(WIDTH / 2 + float(size) / 4, abs=0.1)  # half a margin to the right
    assert "beyond" not in picture


def test_factors_lie_on_a_logarithmic_scale():
    [below], [above] = (
        points(strip(replace(BASE, log=True, predicted=1.0, margin=2.0, observed=at, low=at / 1.1, high=at * 1.1)))
        for at in (0.5, 2.0)
    )
    assert below + above == pytest.approx(WIDTH, abs=0.2)


def test_what_is_far_beyond_the_margin_is_an_arrow():
    far = strip(replace(BASE, observed=-50.0, low=-60.0, high=-40.0))
    assert far.count('class="beyond"') == 1
    assert points(far) == []
    open_end = strip(replace(BASE, low=-math.inf, high=math.inf))
    assert open_end.count('class="beyond"') == 2
    assert len(points(open_end)) == 1
    assert strip(replace(BASE, log=True, predicted=1.0, margin=2.0, low=0.0, observed=0.5)).count("beyond") == 1


def test_another_reference_is_dashed_and_has_no_band_without_a_margin():
    picture = strip(replace(BASE, reference="half", margin=None))
    assert 'class="reference"' in picture
    assert 'class="band"' not in picture


@pytest.mark.parametrize(
    "without",
    [{"observed": None}, {"low": None}, {"low": math.nan}, {"observed": math.inf}, {"predicted": math.nan},
     {"observed": 0.0, "low": 0.0, "high": 0.0, "margin": None}],
)  # fmt: skip
def test_without_an_interval_there_is_no_picture(without):
    assert strip(replace(BASE, status=Status.INCONCLUSIVE, **without)) == ""
