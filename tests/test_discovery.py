import importlib.metadata
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from depthgauge import discovery, request
from depthgauge.cli import main
from depthgauge.discovery import UnknownStudyError, discover, find
from depthgauge.request import StudyRequest, choose
from depthgauge.study import StudyError
from depthgauge.verdict import Claim

WALK = Path(__file__).parent / "engine_studies" / "walk.py"

BODY = """
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim

FIRST = Claim(id="X01", text="a claim "
              "in two halves")
CLAIMS = (FIRST, Claim("X02", "another" + " one"))
STUDY = Study(
    name={name!r},
    question="Does it work?",
    presets={{"quick": (Grid({{"x": (1, 2)}}),), "full": ()}},
    run=lambda cases, context: (),
    analyse=list,
    plot=list,
    claims=CLAIMS + (Claim("X03", "the last"),),
)
"""


@pytest.fixture(autouse=True)
def _restore_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("depthgauge_study_", "mine")):
            del sys.modules[name]


def write(path, name="mine", body=BODY):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body.format(name=name))
    return path


def test_a_study_is_read_without_being_run(tmp_path):
    path = write(tmp_path / "mine.py", body="raise SystemExit\n" + BODY)
    found = find("mine", [str(path)])
    assert found.question == "Does it work?"
    assert found.presets == ("quick", "full")
    assert found.claims == (
        Claim("X01", "a claim in two halves"),
        Claim("X02", "another one"),
        Claim("X03", "the last"),
    )
    assert found.origin == str(path)
    assert found.foreign


def test_what_a_file_computes_is_left_out_of_a_listing(tmp_path):
    body = """
from depthgauge.study import Study
STUDY = Study(name=compute(), question="?".join(parts), presets={"quick": (), **MORE}, claims=compute())
"""
    (tmp_path / "mine.py").write_text(body)
    found = find("mine", [str(tmp_path / "mine.py")])
    assert (found.name, found.question, found.presets, found.claims) == ("mine", "", (), ())


def test_a_constant_that_refers_to_itself_ends(tmp_path):
    found = find("mine", [str(write(tmp_path / "mine.py", body=BODY + "\nFIRST = CLAIMS\n"))])
    assert found.claims == ()


def test_loading_gives_the_study(tmp_path):
    found = find("mine", [str(write(tmp_path / "mine.py"))])
    study = found.load()
    assert study.name == "mine"
    assert study.claims == found.claims
    assert tuple(study.presets) == found.presets
    assert found.load() is study


def test_what_listing_reads_is_what_the_study_says():
    found = find("walk", [str(WALK)])
    study = found.load()
    assert (found.question, found.claims, found.presets) == (study.question, study.claims, tuple(study.presets))


@pytest.mark.parametrize("found", discover(), ids=lambda found: found.name)
def test_every_study_of_ours_is_told_in_full_without_importing_it(found):
    assert not found.problem
    study = found.load()
    told = tuple(replace(claim, topic=claim.topic or study.topic) for claim in study.claims)
    assert (found.name, found.question, found.claims) == (study.name, study.question, told)
    assert set(found.presets) == set(study.presets)


def test_studies_come_from_files_folders_and_packages(tmp_path, monkeypatch):
    write(tmp_path / "folder" / "a.py", "a")
    write(tmp_path / "folder" / "_private.py", "private")
    (tmp_path / "folder" / "shapes.py").write_text("SIDES = 4\n")
    write(tmp_path / "mine_package" / "b.py", "b", "from .shapes import SIDES\n" + BODY)
    write(tmp_path / "mine_package" / "c" / "__init__.py", "c")
    (tmp_path / "mine_package" / "__init__.py").touch()
    (tmp_path / "mine_package" / "shapes.py").write_text("SIDES = 4\n")
    ours = {found.name for found in discover()}

    def names(source):
        return {found.name for found in discover([source])} - ours

    assert names(str(tmp_path / "folder")) == {"a"}
    assert names(str(tmp_path / "folder" / "a.py")) == {"a"}
    assert names(str(tmp_path / "mine_package")) == {"b", "c"}
    assert find("b", [str(tmp_path / "mine_package")]).origin == "mine_package.b"
    assert find("b", [str(tmp_path / "mine_package")]).load().name == "b"
    monkeypatch.chdir(tmp_path)
    assert names("mine_package") == {"b", "c"}
    assert names("mine_package.b") == {"b"}


def test_a_study_may_import_its_neighbours_and_shadows_nothing(tmp_path):
    (tmp_path / "mine_models.py").write_text("WIDTH = 3\n")
    (tmp_path / "json.py").write_text("raise ImportError\n")
    path = write(tmp_path / "mine.py", body="import json, mine_models\nassert json.dumps\n" + BODY)
    assert find("mine", [str(path)]).load().name == "mine"


def test_an_installed_distribution_brings_studies_by_an_entry_point(tmp_path, monkeypatch):
    write(tmp_path / "mine_installed" / "__init__.py", "installed")
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("anything", "mine_installed", discovery.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == discovery.GROUP else [])
    write(tmp_path / "mine_installed" / "one.py", "one")
    assert [found.origin for found in discover() if found.foreign] == ["mine_installed", "mine_installed.one"]


def test_an_entry_point_that_is_broken_costs_a_line(tmp_path, monkeypatch, capsys):
    write(tmp_path / "mine_good.py", "good")
    write(tmp_path / "mine_lacking.py", "lacking", "import no_such_module\n" + BODY)
    write(tmp_path / "mine_namesake.py", "precision")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"stale": "mine_gone.studies", "odd": "!!", "same": "mine_namesake", "a": "mine_lacking", "b": "mine_good"}
    points = [importlib.metadata.EntryPoint(name, value, discovery.GROUP) for name, value in values.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == discovery.GROUP else [])
    assert [found.name for found in discover() if found.foreign] == ["good", "lacking"]
    with pytest.raises(
        UnknownStudyError, match=r"^the entry point 'stale' \(mine_gone.studies\) brings no study: there "
    ):
        find("stale")
    with pytest.raises(StudyError, match="No module named 'no_such_module'"):
        find("lacking").load()
    names = [found.name for found in choose((), "quick", ())]
    assert "good" in names
    assert "lacking" not in names
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1:] for line in told[:2]] == [
        ["the entry point 'stale' (mine_gone.studies) brings no study", "there is no module 'mine_gone.studies'"],
        ["the entry point 'odd' (!!) brings no study", "it does not name a module"],
    ]
    assert "mine_namesake.py has the name of" in told[2]
    assert "study 'lacking' of the entry point 'a' (mine_lacking) is left out" in told[3]
    assert len(told) == 4
    assert CliRunner().invoke(main, ["lst"], prog_name="depthgauge").exit_code == 2


def test_a_study_in_an_inner_package_is_found_again(tmp_path, monkeypatch):
    write(tmp_path / "mine_outer" / "inner" / "one.py", "one", "from ..shapes import SIDES\n" + BODY)
    (tmp_path / "mine_outer" / "shapes.py").write_text("SIDES = 4\n")
    for folder in ("mine_outer", "mine_outer/inner", "mine_space/inner"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "__init__.py").touch()
    write(tmp_path / "mine_space" / "inner" / "two.py", "two")
    monkeypatch.chdir(tmp_path)
    found = find("one", ["mine_outer.inner"])
    place = discovery.place(found.origin)
    assert place == str(tmp_path / "mine_outer" / "inner")
    assert discovery.place(find("two", ["mine_space.inner"]).origin) == "mine_space.inner.two"
    monkeypatch.chdir("/")
    assert discovery.located(place, "one", outside=tmp_path / "run") == find("one", [place]) == found
    assert found.load().name == "one"


def test_a_study_in_a_package_without_an_init_file_is_found_from_elsewhere(tmp_path, monkeypatch):
    write(tmp_path / "mine_vast" / "studies" / "three.py", "three", "from mine_vast.sides import SIDES\n" + BODY)
    (tmp_path / "mine_vast" / "sides.py").write_text("SIDES = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = find("three", ["mine_vast.studies"])
    root = discovery.root(found.origin)
    assert (discovery.place(found.origin), root) == ("mine_vast.studies.three", str(tmp_path))
    assert discovery.root("depthgauge.studies.precision") is None
    asked = StudyRequest(found.load(), found.origin, None, ())
    assert request.entry(asked, request.Request("quick"))["root"] == root
    monkeypatch.chdir("/")
    sys.path.remove(str(tmp_path))
    sys.path_importer_cache.clear()
    for name in [name for name in sys.modules if name.startswith("mine_vast")]:
        del sys.modules[name]
    with pytest.raises(UnknownStudyError, match="present place is unknown"):
        discovery.located(found.origin, "three", outside=tmp_path / "run")
    with pytest.raises(UnknownStudyError, match="present place is unknown"):  # nothing of the run's own folder
        discovery.located(found.origin, "three", outside=tmp_path, root=root)
    for odd in ("\0", "x" * 5000, "mine_vast", 7):
        with pytest.raises(UnknownStudyError, match="present place is unknown"):
            discovery.located(found.origin, "three", outside=tmp_path / "run", root=odd)
    assert str(tmp_path) not in sys.path
    assert discovery.located(found.origin, "three", outside=tmp_path / "run", root=root) == found
    assert found.load().name == "three"


def test_looking_runs_no_package(tmp_path, monkeypatch, capfd):
    write(tmp_path / "mine_bad" / "sub" / "one.py", "one")
    (tmp_path / "mine_bad" / "__init__.py").write_text("print('noise')\nraise RuntimeError('no luck')\n")
    monkeypatch.chdir(tmp_path)
    found = find("one", ["mine_bad.sub"])
    for source in ("mine_bad.py", "mine_bad.sub.none", "mine_bad.sub.one.none"):
        with pytest.raises(UnknownStudyError, match="is neither a file, a folder nor an importable package"):
            discover([source])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(StudyError, match=r"cannot be loaded from mine_bad\.sub\.one: RuntimeError: no luck"):
        found.load()
    assert capfd.readouterr() == ("", "noise\n")


def test_namesakes_are_refused(tmp_path):
    with pytest.raises(StudyError, match=r"two studies are named 'mine': .*a\.py and .*b\.py"):
        discover([str(write(tmp_path / "a.py")), str(write(tmp_path / "b.py"))])
    same = str(tmp_path / "a.py")
    assert len([found for found in discover([same, same]) if found.name == "mine"]) == 1


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    path = str(write(tmp_path / "mine.py", "gradient_norms"))
    with pytest.raises(UnknownStudyError, match="there is no study 'gradient_norm'; did you mean 'gradient_norms'"):
        find("gradient_norm", [path])
    with pytest.raises(UnknownStudyError, match=r"there is no study 'qqq'; there are .*gradient_norms"):
        find("qqq", [path])
    with pytest.raises(UnknownStudyError, match="'no_such_thing' is neither a file, a folder nor"):
        discover(["no_such_thing"])


def test_a_broken_file_spoils_no_other_and_says_why_when_it_is_wanted(tmp_path):
    write(tmp_path / "good.py", "good")
    (tmp_path / "broken.py").write_text("def (:\n")
    found = {study.name: study for study in discover([str(tmp_path)])}
    assert found["good"].load().name == "good"
    assert "broken.py cannot be read as Python" in found["broken"].problem
    with pytest.raises(StudyError, match="cannot be read as Python"):
        found["broken"].load()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import no_such_module\n" + BODY, "cannot be loaded from .*: ModuleNotFoundError: No module named 'no_such"),
        ("import sys\n" + BODY + "sys.exit(3)\n", "cannot be loaded from .*: SystemExit: 3"),
        (BODY + "STUDY = 3\n", "has no module-level STUDY that is a"),
        (BODY + "import dataclasses\nSTUDY = dataclasses.replace(STUDY, name='other')\n", "has no|is named 'other'"),
    ],
)
def test_a_study_that_cannot_be_loaded_says_why(tmp_path, body, message):
    path = write(tmp_path / "mine.py", body=body)
    with pytest.raises(StudyError, match=message):
        discovery.load(str(path), "mine")
    assert not [name for name in sys.modules if name.startswith("depthgauge_study_mine")] or "STUDY" in body


def test_a_named_file_without_a_study_is_an_error(tmp_path):
    path = tmp_path / "empty.py"
    path.touch()
    with pytest.raises(StudyError, match=r"empty\.py has no module-level STUDY"):
        discover([str(path)])


@pytest.mark.parametrize("source", ["a" * 300, "a" * 300 + "/b", "x/" * 3000, "\udce9", "a\0b", "."])
def test_a_source_with_an_absurd_name_is_told(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownStudyError):
        discover([source])


def test_a_pipe_among_studies_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    write(tmp_path / "mine.py")
    assert find("mine", [str(tmp_path)]).name == "mine"


def test_the_source_of_a_study_of_ones_own_is_its_file_or_its_package(tmp_path):
    alone = find("mine", [str(write(tmp_path / "mine.py"))])
    first = alone.source()
    (tmp_path / "neighbour.py").touch()
    assert alone.source() == first
    write(tmp_path / "mine.py", body=BODY + "# changed\n")
    second = alone.source()
    assert second != first
    write(tmp_path / "mine.py", body=BODY + "import neighbour\n")
    third = alone.source()
    (tmp_path / "neighbour.py").write_text("VALUE = 2\n")
    assert len({first, second, third, alone.source()}) == 4

    (tmp_path / "mine_pack").mkdir()
    (tmp_path / "mine_pack" / "__init__.py").touch()
    write(tmp_path / "mine_pack" / "p.py", "p")
    packed = find("p", [str(tmp_path / "mine_pack")])
    first = packed.source()
    (tmp_path / "mine_pack" / "part.py").touch()
    assert packed.source() != first


def test_looking_imports_neither_torch_nor_pandas():
    code = """
        import sys
        from depthgauge.discovery import discover
        discover()
        print(*sorted({"torch", "pandas", "scipy", "numpy", "pyarrow"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
