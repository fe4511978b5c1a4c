"""The forms of an architecture that a study compares: its normalization, with and without skip connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from depthgauge import models
from depthgauge.factories import is_factory

OWN = "own"  # what a user's factory decides by itself
NORMS = {"none": "no normalization", OWN: "its factory's normalization, if any"}
SKIPS = {"with": "skip connections", OWN: "its factory's skips, if any"}


@dataclass(frozen=True)
class Form:
    """An architecture in one of its forms.

    Attributes:
        model: its name, or spec.
        norm: its normalization: `none`, `batch`, ...; or `own`.
        skips: `with` or `without` skip connections, `none` where a model of ours has no place for them; or `own`.
        as_built: whether that is what the model is by default.
    """

    model: str
    norm: str
    skips: str
    as_built: bool

    @staticmethod
    def of(model: str, norm: str | None, residual: bool | float | None, preset: str = "small") -> Form:
        """The form that these arguments of `models.build` ask for; what they leave open is the preset's."""
        default = {} if is_factory(model) else models.arguments(model, preset)
        unknown = OWN if is_factory(model) else "none"
        asked = {"norm": norm, "residual": residual}
        made = {name: default.get(name) if value is None else value for name, value in asked.items()}
        skips = unknown if made["residual"] is None else "with" if made["residual"] else "without"
        as_built = all(value is None or value == default.get(name) for name, value in asked.items())
        return Form(model, unknown if made["norm"] is None else str(made["norm"]), skips, as_built)

    @property
    def norm_in_words(self) -> str:
        """Such as `batch normalization`."""
        return NORMS.get(self.norm, f"{self.norm} normalization")

    @property
    def words(self) -> str:
        """Normalization and skip connections, as a legend has them."""
        if self.norm == self.skips == OWN:
            return "as its factory makes it"
        return f"{self.norm_in_words}, {SKIPS.get(self.skips, 'no skips')}"


def by_form(params: pd.DataFrame) -> dict[Form, pd.DataFrame]:
    """The cases of every form of every model, the simplest models first.

    What a user's factory decides by itself comes once: as it is, or in all the forms that it can take.

    Args:
        params: one row a case, with the columns `model`, `norm`, `residual`; empty where the case leaves it open.
    """
    cases, place = {}, {name: place for place, name in enumerate(models.names())}
    key: Any
    for key, own in params.groupby(["model", "norm", "residual"], sort=False, dropna=False):
        model, norm, residual = (None if pd.isna(value) else value for value in key)
        cases[Form.of(str(model), norm, residual)] = own
    full = {form.model for form in cases if OWN not in (form.norm, form.skips)}
    shown = (form for form in cases if (form.norm == OWN) == (form.skips == OWN) or form.model not in full)
    return {form: cases[form] for form in sorted(shown, key=lambda form: place.get(form.model, len(place)))}
