"""An error names its author's line: in the study's file or package, not torch's, pandas' or depthgauge's own."""

import sys
import textwrap
from pathlib import Path

import pytest

from depthgauge import discovery, factories, origin, reports, running
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings

MEASURE = """
import torch

def multiply(a):
    return torch.ones(2, 3) @ a

def measured(cases):
    for case in cases:
        yield case.rows("x", float(multiply(torch.ones(2)).sum()) if case["part"] else 1.0)
"""
FINDINGS = """
import pandas as pd
from matplotlib.figure import Figure as Canvas
from depthgauge.verdict import Findings

def analyse(frame):
    return Findings((), tables={"ends": frame["absent"]})

def plot(findings):
    yield pd.DataFrame({"x": [1.0]})["y"]
"""
STUDY = """
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings
from {package}measure import measured
from {package}conclude import {analyse}{plot}

def run(cases, context):
    yield from measured(cases)

def no_findings(frame):
    return Findings(())

STUDY = Study("{name}", "?", {{"quick": (Grid({{"part": (0, 1)}}),)}}, run, {analyse_name}, plot)
"""


def write(folder, name, *, package, analyse):
    """A study in the folder: a package, or a file beside the files that it imports."""
    home = folder / name if package else folder
    home.mkdir(exist_ok=True)
    names = {"analyse": "analyse, " if analyse else "", "analyse_name": "analyse" if analyse else "no_findings"}
    text = STUDY.format(package=f"{name}." if package else f"{name}_", name=name, plot="plot", **names)
    (home / ("__init__.py" if package else f"{name}.py")).write_text(text)
    for part, lines in (("measure", MEASURE), ("conclude", FINDINGS)):
        (home / (f"{part}.py" if package else f"{name}_{part}.py")).write_text(textwrap.dedent(lines))
    return str(home if package else home / f"{name}.py")


CASES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("package", "analyse"), CASES)
def test_the_line_is_in_the_file_that_the_author_wrote(tmp_path, package, analyse):
    name = f"lines_{'package' if package else 'file'}_{'analysis' if analyse else 'plot'}"
    source = write(tmp_path, name, package=package, analyse=analyse)
    outcome = running.run(name, out=tmp_path / "x", workers=0, sources=[source])
    stem = "" if package else f"{name}_"
    (message,) = (message for message in outcome.stored.frame(name)["message"] if message)
    assert message.startswith("RuntimeError: size mismatch")
    assert message.endswith(f"(in multiply, {stem}measure.py:5)")
    with pytest.raises(reports.IncompleteReportError) as incomplete:
        reports.render(outcome.stored, outcome.studies)
    place = f"(in analyse, {stem}conclude.py:7)" if analyse else f"(in plot, {stem}conclude.py:10)"
    assert f"KeyError: {'absent' if analyse else 'y'!r} {place}" in str(incomplete.value)


def test_a_file_is_the_authors_if_it_lies_beside_the_package_or_in_it(tmp_path):
    source = write(tmp_path, "lines_lost", package=True, analyse=False)
    wrote = origin.author(discovery.find("lines_lost", [source]).origin)
    assert wrote(str(tmp_path / "lines_lost" / "measure.py"))
    assert wrote(str(tmp_path / "beside.py"))
    assert not wrote(str(tmp_path / ".venv/lib/python3.12/site-packages/torch/nn.py"))
    assert not wrote(str(tmp_path.parent / "elsewhere.py"))


def test_depthgauges_own_lines_are_its_studies_alone():
    study = discovery.find("gradient_flow").load()
    folder = Path(discovery.find("gradient_flow").path).parent
    assert origin.author(study)(str(folder / "signal.py"))
    assert not origin.author(study)(str(folder.parent / "activation" / "parts.py"))
    assert not origin.author(study)(str(Path(running.__file__)))


def test_a_study_that_is_in_no_module_has_the_file_of_its_functions():
    def run(cases, context):
        raise ValueError("here")

    study = Study("made_here", "?", {"quick": (Grid({"part": (1,)}),)}, run, lambda _: Findings(()), list)
    with pytest.raises(ValueError, match="here") as raised:
        study.run((), None)
    assert origin.describe(study, raised.value).startswith("ValueError: here (in run, test_origin.py:")


def test_an_error_of_a_users_model_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "origin_nets.py").write_text("def make(norm=None):\n    return {}[norm]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    make = factories.load("origin_nets:make")
    study = Study("made_here", "?", {"quick": (Grid({"part": (1,)}),)}, lambda *_: make(), list, list)
    with pytest.raises(KeyError) as raised:
        study.run((), None)
    assert origin.describe(study, raised.value) == "KeyError: None (in make, origin_nets.py:2)"


def test_where_no_line_is_the_authors_none_is_named():
    study = Study("made_here", "?", {"quick": (Grid({"part": (1,)}),)}, list, list, list)
    with pytest.raises(TypeError) as raised:
        study.run(3)
    assert origin.describe(study, raised.value) == "TypeError: 'int' object is not iterable"
