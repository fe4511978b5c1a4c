"""One look for each thing, in every figure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from depthgauge import formats, models
from depthgauge.drawing import PALETTE, Look, look, looks
from depthgauge.drawing.palette import _ANSWERS, _DECLARED
from depthgauge.initialization.catalog import SCHEMES
from depthgauge.models.slots import NORMS, activations

KINDS = {
    "activation": [*activations(), "threshold"],
    "scheme": [*SCHEMES, "torch"],
    "format": [one.name for one in formats.FORMATS],
    "norm": sorted({name for names in NORMS.values() for name in names}),
    "architecture": list(models.names()),
    "answer": list(_ANSWERS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_palette_knows_everything_that_the_project_has(kind):
    same = {"identity", "torch"}
    assert {name for name in KINDS[kind] if name not in same} <= set(_DECLARED[kind])


@pytest.mark.parametrize("kind", _DECLARED)
def test_no_two_of_a_kind_share_a_look(kind):
    shown = looks(kind, _DECLARED[kind])
    assert len(set(shown.values())) == len(shown) == len(_DECLARED[kind])
    assert {one.colour for one in list(shown.values())[:7]} <= set(PALETTE)


def test_the_first_seven_of_a_kind_differ_in_colour_alone():
    for kind in KINDS:
        first = list(_DECLARED[kind].values())[:7]
        assert len({one.colour for one in first}) == len(first), kind


def test_a_name_has_the_same_look_whatever_it_is_shown_with():
    alone = look("activation", "gelu")
    assert looks("activation", ["tanh", "mine.nets:swoosh", "gelu"])["gelu"] == alone == Look("#E69F00")
    assert look("activation", "identity") == look("activation", "linear")
    assert look("scheme", "torch") == look("scheme", "default")


def test_an_activation_of_ones_own_has_a_stable_look_that_no_other_has():
    own = [f"mine.nets:act{i}" for i in range(12)]
    shown = looks("activation", [*own, *activations()])
    assert len({shown[name] for name in own}) == len(own)
    assert not {shown[name] for name in own} & set(_DECLARED["activation"].values())
    assert looks("activation", reversed(own)) == looks("activation", own)
    assert look("activation", own[0]) == look("activation", own[0])
    assert list(looks("activation", own)) == own


def test_names_of_ones_own_differ_in_colour_as_long_as_there_are_colours():
    names = ["none", "norm 1", "value 0.1", "adaptive 0.04", "normalized"]
    assert len({one.colour for one in looks("clipping", names).values()}) == len(names)


def test_more_names_than_looks_are_drawn_all_the_same():
    assert len(looks("anything", map(str, range(200)))) == 200


def test_importing_the_kit_loads_no_drawing_library():
    heavy = ("matplotlib", "seaborn", "torch")
    code = f"import sys, depthgauge.drawing; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
