"""What holds of every study there is: ours, found by discovery, and the example of the documentation."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from depthgauge import models
from depthgauge.discovery import Found, discover
from depthgauge.restriction import restrict
from depthgauge.study import RESERVED, Chunk, Study

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "dead_units.py"
PRESETS = ("quick", "standard", "full")
OURS = discover()
ALL = discover([str(EXAMPLE)])
NOTES = frozenset(f"N{i:02d}" for i in range(1, 50))  # claims of the course notes
HEAVY = ("torch", "pandas", "scipy", "numpy", "matplotlib", "pyarrow")

every_study = pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)


def of(presets: Iterable[tuple[Found, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("found", "preset"), [*presets], ids=lambda value: str(getattr(value, "name", value))
    )


every_preset = of((found, preset) for found in ALL for preset in found.presets)
but_full = of((found, preset) for found in ALL for preset in found.presets if preset != "full")  # as `standard`, longer


@cache
def loaded(found: Found) -> Study:
    return found.load()


@cache
def chunks_of(found: Found, preset: str) -> tuple[Chunk, ...]:
    """A full study has a hundred thousand cases: they are made once."""
    return tuple(loaded(found).chunks(preset))


def test_there_are_studies() -> None:
    assert "gradient_flow" in {found.name for found in OURS}
    assert {found.name for found in ALL} - {found.name for found in OURS} == {"dead_units"}


@every_study
def test_what_a_listing_reads_is_what_the_study_says(found: Found) -> None:
    study = loaded(found)
    assert not found.problem
    told = tuple(replace(claim, topic=claim.topic or study.topic) for claim in study.claims)
    assert (found.name, found.question, found.claims) == (study.name, study.question, told)
    assert set(found.presets) == set(study.presets) <= set(PRESETS)


@every_study
def test_a_study_is_a_question_with_claims(found: Found) -> None:
    study = loaded(found)
    assert study.question.endswith("?")
    assert study.question[0].isupper()
    assert study.question == " ".join(study.question.split())
    assert study.name in {found.path.stem, found.path.parent.name}
    assert study.claims
    ids = [claim.id for claim in study.claims]
    assert len(set(ids)) == len(ids)
    for claim in study.claims:
        assert claim.id in NOTES or claim.id.startswith(f"{study.name}/")
        assert claim.text
        assert not claim.text.endswith((".", "?"))
    assert study.caveats, "what was fixed is what the answers are conditional on"
    assert 0 < study.time_limit <= 3600
    assert study.threads >= 1


@pytest.mark.parametrize("found", OURS, ids=lambda found: found.name)
def test_our_own_studies_come_in_three_sizes_and_tell_their_method(found: Found) -> None:
    study = loaded(found)
    assert tuple(study.presets) == PRESETS
    assert study.method.strip()
    cases = [sum(len(chunk.cases) for chunk in chunks_of(found, preset)) for preset in PRESETS]
    assert cases == sorted(cases)


def test_a_claim_has_one_wording_whichever_studies_answer_it() -> None:
    """One of the notes may concern several studies, each with a verdict of its own; a study's own belongs to it."""
    wordings = {(claim.id, claim.text) for found in OURS for claim in found.claims}
    assert len({claim for claim, _ in wordings}) == len(wordings)


@every_preset
def test_presets_expand_without_a_clash(found: Found, preset: str) -> None:
    study = loaded(found)
    chunks = chunks_of(found, preset)
    cases = [case for chunk in chunks for case in chunk.cases]
    assert cases
    assert len({case.id for case in cases}) == len(cases)
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert not RESERVED & {name for case in cases for name, _ in case.params}
    assert {chunk.study for chunk in chunks} == {study.name}


@pytest.mark.slow
@but_full
def test_a_study_that_can_vary_its_model_can_be_run_on_each_of_ours(found: Found, preset: str) -> None:
    """Without a clash, with a reason for what is left out, and on a model of its own with the cases it has anyway."""
    study = loaded(found)
    every = {case for chunk in chunks_of(found, preset) for case in chunk.cases}
    if not any("model" in {*grid.varied, *grid.fixed} for grid in study.presets[preset]):
        return
    for name in models.names():
        left = restrict(study, preset, models.target(name))
        chunks = replace(study, presets={**study.presets, preset: left.grids}).chunks(preset)
        cases = {case for chunk in chunks for case in chunk.cases}
        assert {case["model"] for case in cases} <= {name}
        own = {case for case in every if case.get("model") == name}
        assert cases == own or not own
        assert all(left.not_applicable.values())
        assert set(left.not_applicable) <= {claim.id for claim in study.claims}
        assert cases or left.left_out


@every_preset
def test_chunks_pickle_and_carry_no_code(found: Found, preset: str) -> None:
    for chunk in chunks_of(found, preset):
        assert pickle.loads(pickle.dumps(chunk)) == chunk
        # The grid's size function stays behind: what goes to a worker are names and values.
        assert all(
            isinstance(value, str | int | float | bool | None) for case in chunk.cases for _, value in case.params
        )


@every_preset
def test_what_is_repeated_is_repeated_often_enough_for_a_verdict(found: Found, preset: str) -> None:
    for grid in loaded(found).presets[preset]:
        assert grid.seeds == 0 or grid.seeds >= 5


@every_study
def test_more_seeds_add_cases_and_change_none(found: Found) -> None:
    study = loaded(found)
    few = {case.id for chunk in study.chunks("quick", 2) for case in chunk.cases}
    more = {case.id for chunk in study.chunks("quick", 3) for case in chunk.cases}
    assert few <= more
    assert (few == more) is not any(grid.seeds for grid in study.presets["quick"])


@every_study
def test_every_parameter_has_one_type(found: Found) -> None:
    """A column of the stored table: a parameter that is text here and a number there could not be compared."""
    kinds: dict[str, set[str]] = {}
    for preset in found.presets:
        for chunk in chunks_of(found, preset):
            for name, value in (pair for case in chunk.cases for pair in case.params if pair[1] is not None):
                kinds.setdefault(name, set()).add("number" if type(value) in {int, float} else type(value).__name__)
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def told_afresh(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_ids_are_the_same_in_another_process() -> None:
    """Under another hash seed, where sets and dictionaries of one's own would come in another order."""
    code = f"""
import json
from depthgauge.discovery import discover
ids = {{f.name: [c.id for p in f.presets[:2] for c in f.load().chunks(p)] for f in discover([{str(EXAMPLE)!r}])}}
print(json.dumps(ids))
"""
    here = {found.name: [c.id for preset in found.presets[:2] for c in chunks_of(found, preset)] for found in ALL}
    assert told_afresh(code) == here


def test_listing_imports_nothing_heavy() -> None:
    code = f"""
import json, sys
from depthgauge.discovery import discover
assert all(f.question and f.claims and f.presets for f in discover([{str(EXAMPLE)!r}]))
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    assert told_afresh(code) == []
