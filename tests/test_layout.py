"""What is installed, and what may import what."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import depthgauge
import depthgauge.models
import depthgauge.reports
import depthgauge.studies
import pytest

FOLDERS = {
    "depthgauge": Path(depthgauge.__file__).parent,
    "depthgauge.models": Path(depthgauge.models.__file__).parent,
    "depthgauge.reports": Path(depthgauge.reports.__file__).parent,
    "depthgauge.studies": Path(depthgauge.studies.__file__).parent,
}

# Each layer may import itself and what stands before it. Names are modules or packages below `depthgauge`.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"formats", "stats", "theory", "environment"}),
    frozenset({"study", "verdict", "probe", "replicas", "data", "target"}),
    frozenset({"discovery", "store", "training", "runner", "profiling", "parallel"}),
    frozenset({"models"}),
    frozenset({"studies", "reports"}),
    frozenset({"cli", "__main__"}),
)
PURE = ("formats", "stats", "theory", "environment")


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


def imported(path: Path) -> set[str]:
    """The depthgauge modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "depthgauge"}


def unit(dotted: str) -> str | None:
    """`depthgauge.theory.gaussian` -> `theory`; the package itself (its version) belongs to no layer."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else None


def layer_of(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


@pytest.mark.parametrize("dotted", sorted(modules()))
def test_imports_point_downward(dotted: str) -> None:
    own = unit(dotted)
    if own is None:
        return
    level = layer_of(own)
    assert level is not None, f"{dotted} stands in no layer"
    for name in imported(modules()[dotted]):
        other = unit(name)
        if other is None or other == own or layer_of(other) is None:  # `from depthgauge import __version__`
            continue
        there = layer_of(other)
        assert there is not None
        assert there <= level, f"{dotted} imports {name}, which stands above it"
        if own == "models":
            assert other in PURE, f"{dotted} imports {name}: models know torch and pure numbers only"
        if {own, other} == {"studies", "reports"}:
            pytest.fail(f"{dotted} imports {name}: studies and reports do not know each other")


def test_studies_do_not_import_each_other() -> None:
    names = {name for name in modules() if name.startswith("depthgauge.studies.")}
    for dotted in names:
        assert not (imported(modules()[dotted]) & names) - {dotted}


def test_pure_modules_import_no_torch_of_their_own() -> None:
    code = "import sys\n" + "".join(f"import depthgauge.{name}\n" for name in PURE) + "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_only_top_level_name_is_depthgauge() -> None:
    distribution = importlib.metadata.distribution("depthgauge")
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        pytest.skip("an editable install; the wheel is what is tested")
    tops = {file.parts[0] for file in distribution.files or [] if ".." not in file.parts}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"depthgauge"}


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
