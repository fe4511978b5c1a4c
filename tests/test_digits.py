"""Numbers with three digits, in words of the command line."""

import importlib
import math

import pytest

from depthgauge.cli.listing import _sizes
from depthgauge.digits import three
from depthgauge.stats import Estimate

plan = importlib.import_module("depthgauge.cli.plan")  # the package's `plan` is the command of that name


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0123456, "0.0123"), (1e-5, "1e-05"), (999.4, "999"), (999.6, "1,000"), (-12345.6, "-12,346"),
        (2.5e12, "2,500,000,000,000"), (1e16, "1e+16"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_large_numbers_are_whole_and_have_no_power_of_ten(value, told):
    assert three(value) == told


def test_a_plan_and_a_listing_tell_large_numbers_so():
    assert plan._bracket(Estimate(12345.6, 9000.0, 20000.0, 5, "given")) == "12,346 [9,000, 20,000]"
    sizes = {"parameters": 25_557_032, "forward_flops": 4_089_184_256}
    assert _sizes({"presets": {"published": sizes}}) == "published 25,557,032 parameters, 4,089 MFLOP forward"
