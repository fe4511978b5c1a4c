"""Which form of an architecture is asked for."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from depthgauge.models.forms import Form, by_form


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        (("resnet18", "batch", True), ("batch", "with", True)),
        (("resnet18", "batch", False), ("batch", "without", False)),
        (("vgg11", "none", None), ("none", "none", True)),
        (("transformer", None, True), ("layer", "with", True)),
        (("a.b:c", None, None), ("own", "own", True)),
        (("a.b:c", "none", None), ("none", "own", False)),
    ],
)
def test_what_is_left_open_is_the_models_default(
    asked: tuple[str, str | None, bool | None], form: tuple[str, str, bool]
) -> None:
    assert Form.of(*asked) == Form(asked[0], *form)


def test_a_form_in_words() -> None:
    assert Form.of("resnet18", "batch", True).words == "batch normalization, skip connections"
    assert Form.of("vgg11", "none", None).words == "no normalization, no skips"
    assert Form.of("a.b:c", None, None).words == "as its factory makes it"


def test_cases_are_sorted_by_form_the_simplest_models_first() -> None:
    asked = [
        ("a.b:c", None, math.nan),
        ("vgg11", "none", math.nan),
        ("mlp", "none", False),
        ("vgg11", "none", math.nan),
    ]
    cases = by_form(pd.DataFrame(asked, columns=["model", "norm", "residual"]))
    assert [(form.model, own.index.tolist()) for form, own in cases.items()] == [
        ("mlp", [2]), ("vgg11", [1, 3]), ("a.b:c", [0]),
    ]  # fmt: skip
