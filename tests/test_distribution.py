"""The wheel: what lies in it, and what its page on a package index shows."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest

from depthgauge.version import __version__

CHECKOUT = Path(__file__).parent.parent
FOLDERS = {
    "depthgauge": CHECKOUT / "src" / "depthgauge",
    "depthgauge/models": CHECKOUT / "models",
    "depthgauge/reports": CHECKOUT / "reports",
    "depthgauge/studies": CHECKOUT / "studies",
}
# All that is no module. A file that is to be published has its line here and in `package-data` of pyproject.toml.
DATA = {
    "depthgauge/py.typed",
    "depthgauge/costs.json",
    "depthgauge/data/files/fashion5k.npz",
    "depthgauge/data/files/fashion5k.LICENSE.txt",
    "depthgauge/data/files/shakespeare.npz",
    "depthgauge/data/files/shakespeare.LICENSE.txt",
    "depthgauge/reports/published_claims.json",
}
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Wheel:
    """A wheel's files, and its METADATA."""

    files: frozenset[str]
    metadata: str

    @property
    def inside(self) -> frozenset[str]:
        """The package's own files, without what an install adds."""
        return frozenset(file for file in self.files if file.startswith("depthgauge/") and "__pycache__" not in file)


def installed() -> importlib.metadata.Distribution:
    """The distribution that this process imports, not one that merely lies in the current folder."""
    found = [d for d in importlib.metadata.distributions(name="depthgauge") if d.read_text("RECORD") is not None]
    assert found, "depthgauge is not installed"
    return found[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """The installed wheel; one built from the checkout where the install is editable."""
    distribution = installed()
    if '"editable": true' not in (distribution.read_text("direct_url.json") or ""):
        files = (str(file) for file in distribution.files or [] if ".." not in file.parts)
        return Wheel(frozenset(files), distribution.read_text("METADATA") or "")
    source = tmp_path_factory.mktemp("source")  # building writes beside what it builds
    for name in ("src", "models", "studies", "reports"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "published")
        shutil.copytree(CHECKOUT / name, source / name, ignore=ignored)
    for name in BUILT_FROM:
        shutil.copy(CHECKOUT / name, source)
    pytest.importorskip("setuptools", "77", reason="an editable install, and no setuptools to build with")
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "dist"], cwd=source, capture_output=True, text=True, check=True, timeout=120
    )
    with zipfile.ZipFile(source / "dist" / done.stdout.split()[-1]) as archive:
        names = frozenset(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return Wheel(names, archive.read(metadata).decode())


def test_only_top_level_name_is_depthgauge(wheel: Wheel) -> None:
    tops = {file.split("/")[0] for file in wheel.files}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"depthgauge"}


def test_the_wheel_holds_modules_templates_and_data_and_nothing_else(wheel: Wheel) -> None:
    """Packages are listed by hand in pyproject.toml; one that was forgotten would only be missed after installing."""
    modules = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    templates = {f"depthgauge/reports/templates/{path.name}" for path in (CHECKOUT / "reports" / "templates").iterdir()}
    assert len(modules) > 300
    assert wheel.inside == modules | templates | DATA


def test_data_and_their_licenses_are_in_the_wheel(wheel: Wheel) -> None:
    shipped = {file.rsplit("/", 1)[1] for file in wheel.inside if file.startswith("depthgauge/data/files/")}
    declared = {file.rsplit("/", 1)[1] for file in wheel.files if ".dist-info/licenses/" in file}
    assert declared == {"LICENSE", *(name for name in shipped if name.endswith(".LICENSE.txt"))}


def test_the_long_description_is_readme_without_relative_links(wheel: Wheel) -> None:
    message = HeaderParser().parsestr(wheel.metadata)
    assert message["Description-Content-Type"] == "text/markdown"
    text = str(message.get_payload())
    assert text.startswith("# depthgauge")
    assert "venv .venv && .venv/bin/pip install" in text
    assert [link for link in LINK.findall(text) if not link.startswith("https://")] == []


@pytest.fixture(scope="module")
def absolute() -> Callable[[str, str, str], str]:
    pytest.importorskip("setuptools", reason="setup.py imports it")
    made: Callable[[str, str, str], str] = runpy.run_path(str(CHECKOUT / "setup.py"))["absolute"]
    return made


def test_links_and_pictures_lead_to_the_release_of_the_repository(absolute: Callable[[str, str, str], str]) -> None:
    text = "[![a b](x/y.png)](docs/z.md#there) and [far](https://e.org/) and [in it](#here), [plain](LICENSE)"
    assert absolute(text, "https://host/me/it/", "1.2") == (
        "[![a b](https://host/me/it/raw/v1.2/x/y.png)](https://host/me/it/blob/v1.2/docs/z.md#there)"
        " and [far](https://e.org/) and [in it](https://host/me/it/blob/v1.2/README.md#here),"
        " [plain](https://host/me/it/blob/v1.2/LICENSE)"
    )
    assert absolute(text, "", "1.2") == "*a b* and [far](https://e.org/) and in it, plain"


def test_every_link_of_readme_becomes_absolute(absolute: Callable[[str, str, str], str]) -> None:
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    shown = absolute(readme, "https://host/me/it", __version__)
    assert len(LINK.findall(shown)) == len(LINK.findall(readme)) > 40
    assert [link for link in LINK.findall(shown) if not link.startswith("https://")] == []
    assert {link.split("/")[5] for link in PICTURE.findall(shown)} == {"raw"}


def test_the_citation_and_the_changelog_name_the_version() -> None:
    citation = (CHECKOUT / "CITATION.cff").read_text("utf-8")
    (cited,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    (released,) = re.findall(r'^date-released: "(\S+)"$', citation, re.MULTILINE)
    assert cited == __version__
    assert f"\n## {cited} - {released}\n" in (CHECKOUT / "CHANGELOG.md").read_text("utf-8")
