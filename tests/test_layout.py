"""What is installed, and what may import what."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

import depthgauge
import depthgauge.models
import depthgauge.reports
import depthgauge.studies

FOLDERS = {
    "depthgauge": Path(depthgauge.__file__).parent,
    "depthgauge.models": Path(depthgauge.models.__file__).parent,
    "depthgauge.reports": Path(depthgauge.reports.__file__).parent,
    "depthgauge.studies": Path(depthgauge.studies.__file__).parent,
}

# Names are modules or packages below `depthgauge`. Each imports only what stands on a floor below its own.
FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        (
            "architecture conditions copies digits float32 folder foreign formats frames jsonfile modules multiplying"
            " nested restoring seeding topics updating verdict version"
        ),
        "data environment isolation operations probe reaching stats study theory trace",
        (
            "code costs declaration drifting encoding initialization precision preflight questions replicas summation"
            " timing"
        ),
        (
            "arrival curvature discovery drawing factories hashing integrations noise pilots progress reading remaining"
            " roofline training"
        ),
        "identity origin parts refinement restriction workload",
        "parallel",
        "coordinates learning_rate models planning request runfile worker",
        "housekeeping places",
        "store",
        "joining ledger",
        "driver",
        "running",
        "profiling",
        "reports studies",
        "checking",
        "cli numerics",
        "results pytest_plugin __main__",
    )
)
PURE = ("formats", "stats", "theory", "environment", "seeding")
OF_MODELS = {*PURE, "architecture", "factories", "foreign", "initialization", "isolation", "operations", "workload"}
CHECKOUT = Path(__file__).parent.parent


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("")
            if name == "depthgauge" and inside.parts[0] in {"models", "reports", "studies"}:
                continue  # a wheel installs them below the package; they have an entry of their own
            dotted = ".".join([name, *inside.parts]).removesuffix(".__init__")
            found[dotted] = path
    return found


@cache
def imported(dotted: str) -> set[str]:
    """The depthgauge modules that a module imports, anywhere in it."""
    names: set[str] = set()
    path = modules()[dotted]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in modules() else str(node.module))
    return names & modules().keys() - {dotted}


def unit(dotted: str) -> str | None:
    """`depthgauge.theory.gaussian` -> `theory`; the package itself (its version) stands on no floor."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else None


def floor_of(name: str) -> int:
    floors = [number for number, names in enumerate(FLOORS) if name in names]
    assert len(floors) == 1, f"{name} stands on {len(floors)} floors"
    return floors[0]


@pytest.mark.parametrize("dotted", sorted(modules()))
def test_imports_point_downward(dotted: str) -> None:
    importer = unit(dotted)
    if importer is None:
        return
    floor = floor_of(importer)
    for other in {name for name in map(unit, imported(dotted)) if name is not None} - {importer}:
        assert floor_of(other) < floor, f"{dotted} imports {other}, which does not stand below it"
        assert importer != "models" or other in OF_MODELS, f"{dotted} imports {other}: not for a model"


def test_no_import_circles() -> None:
    """Not even of imports inside functions."""
    try:
        graphlib.TopologicalSorter({dotted: imported(dotted) for dotted in modules()}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"an import circle: {' -> '.join(reversed(error.args[1]))}")


def study_of(dotted: str) -> str | None:
    """`depthgauge.studies.gradient_flow.signal` -> `gradient_flow`: a study is a file, or a package of files."""
    parts = dotted.split(".")
    return parts[2] if parts[:2] == ["depthgauge", "studies"] and len(parts) > 2 else None


def test_studies_do_not_import_each_other() -> None:
    """Nor does their package import any: a study is found by being there, and loading one loads no other."""
    studies = {study for study in map(study_of, modules()) if study}
    assert studies
    for dotted in modules():
        if dotted.split(".")[:2] == ["depthgauge", "studies"]:
            others = {study for study in map(study_of, imported(dotted)) if study in studies} - {study_of(dotted)}
            assert not others, f"{dotted} imports {', '.join(sorted(others))}"


def test_nothing_but_the_command_line_names_a_study() -> None:
    for dotted in modules():
        if unit(dotted) not in {"studies", "cli"}:
            named = {name for name in imported(dotted) if study_of(name)}
            assert not named, f"{dotted} imports {', '.join(sorted(named))}: studies are discovered"


def test_importing_models_loads_no_study_declaration() -> None:
    code = "import sys, depthgauge.models\nprint('depthgauge.study' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_pure_modules_import_no_torch_of_their_own() -> None:
    code = "import sys\n" + "".join(f"import depthgauge.{name}\n" for name in PURE) + "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_a_users_own_models_package_stays_theirs(tmp_path: Path) -> None:
    for name in ("models", "studies", "reports", "tests", "benchmarks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    (tmp_path / "main.py").write_text(
        textwrap.dedent("""
            import models, studies, reports
            import depthgauge.models, depthgauge.studies, depthgauge.reports
            assert (models.MINE, studies.MINE, reports.MINE) == ("models", "studies", "reports")
            assert not hasattr(depthgauge.models, "MINE")
            print("theirs")
        """)
    )
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "theirs", done.stderr
