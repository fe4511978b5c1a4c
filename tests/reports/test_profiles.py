"""The report of profiles: whole, self-contained, and true to what was planted."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from depthgauge.cli.profile_pages import difference_json
from depthgauge.operations import Operation
from depthgauge.profiling import Capture, Difference, ProfileError, analyse, difference, read
from depthgauge.reports import profile_difference
from depthgauge.reports.profiles import render
from depthgauge.roofline import Ceilings

LINK = re.compile(r"\]\(([^)]+)\)")


def event(cat: str, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": args}


def host(name: str, start: float, end: float, link: int, *shapes: tuple[int, ...]) -> dict[str, Any]:
    args = {"External id": link, "Input Dims": [list(one) for one in shapes], "Input type": ["float"] * len(shapes)}
    return event("cpu_op", name, start, end, **args)


STEP = [
    event("user_annotation", "ProfilerStep#3", 0, 1000),
    event("user_annotation", "depthgauge: forward", 0, 300),
    event("user_annotation", "depthgauge: backward", 300, 900),
    event("user_annotation", "depthgauge: optimizer", 900, 1000),
    host("aten::mm", 50, 250, 1, (64, 32), (32, 16)),
    host("aten::relu", 260, 290, 2, (64, 16)),
    host("aten::mm", 350, 750, 3, (32, 64), (64, 16)),
    host("aten::add_", 910, 990, 4, (32, 16), (32, 16)),
]
KERNELS = [
    event("cuda_runtime", "cudaLaunchKernel", 60, 65, correlation=7),
    event("kernel", "sm80_xmma_gemm_bf16_s16816", 100, 400, correlation=7, stream=7, **{"External id": 1}),
]
OPERATIONS = (
    Operation("aten::mm", ((64, 32), (32, 16)), 65_536, 14_336, "float32"),
    Operation("aten::relu", ((64, 16),), 0, 8_192, "float32"),
    Operation("aten::mm", ((32, 64), (64, 16)), 65_536, 14_336, "float32"),
    Operation("aten::add_", ((32, 16), (32, 16)), 0, 6_144, "float32"),
)


def plant(folder: Path, label: str, *, device: str = "cpu", **setting: str) -> None:
    trace = f"traces/{label}/{label}.1.pt.trace.json.gz"
    (folder / trace).parent.mkdir(parents=True)
    events = STEP if device == "cpu" else [*STEP, *KERNELS]
    (folder / trace).write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    Capture(
        label=label,
        setting={"model": label, "dtype": "float32", "device": device, "compiled": False, **setting},
        examples=64,
        precision="float32",
        plain=(0.0008, 0.00081, 0.00079, 0.0008, 0.0008, 0.0008, 0.00082, 0.0008),
        profiled=(0.001,) * 8,
        first=0.1,
        operations=OPERATIONS,
        resident={"parameters": 2048, "optimizer state": 2048, "batch": 8192},
        ceilings=Ceilings(
            device,
            1,
            {"float32": 1e9, "bfloat16": 3e9},
            1e9,
            1e10,
            ((1 << 14, 1e10), (1 << 22, 1e9)) if device == "cpu" else (),
        ),
        trace=trace,
        fingerprint={"torch": "2.13.0", "device": device, "commit": None},
        command=f"depthgauge profile {label}",
    ).write(folder)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    plant(folder, "first<model>")
    plant(folder, "second", device="cuda")
    return render(folder).parent


def test_every_link_and_picture_leads_somewhere(report: Path) -> None:
    pages = sorted(report.glob("*.md"))
    assert len(pages) == 3
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (report / target.replace("\\", "")).is_file(), f"{page.name} links {target}"


def test_the_page_says_what_was_planted(report: Path) -> None:
    (page,) = (path.read_text(encoding="utf-8") for path in report.glob("first*.md"))
    assert "A training step takes 800 µs" in page
    assert "80.0 k examples a second" in page
    assert "Forward takes 30% of it, backward 60%, the optimizer 10%. Backward takes 2 times as long" in page
    assert "For 29% of the traced step no operator computes" in page  # 1000 less 200, 30, 400 and 80
    assert "Under the profiler a step takes 1.25 times as long" in page
    assert "Tensor cores: not applicable, a CPU has none." in page
    assert "| calls | self time | share | FLOP rate | byte rate | of the roofline |" in page
    assert "| phase | computing | no operator runs | all |" in page
    assert "| aten::mm | matrix product | 2 | 600 µs | 60.0% | 218 MFLOP/s | 47.8 MB/s | 22% |" in page


def test_the_opportunities_told_are_the_three_largest(report: Path) -> None:
    (page,) = (path.read_text(encoding="utf-8") for path in report.glob("first*.md"))
    listed = re.findall(r"^\d\. \*\*(.+?)\*\*: up to (.+?), ", page, re.MULTILINE)
    told = json.loads((report / "profiles.json").read_text())["profiles"]["first<model>"]["opportunities"]
    assert [name for name, _ in listed] == [one["name"] for one in told[:3]]
    assert told == sorted(told, key=lambda one: -one["seconds"])


def test_a_device_has_kernels_and_tensor_cores(report: Path) -> None:
    page = (report / "second.md").read_text(encoding="utf-8")
    assert "sm80\\_xmma" in page or "sm80_xmma" in page
    assert "kernels that use tensor cores, by their names: float32 100%." in page
    assert (report / "tables" / "second.kernels.csv").is_file()
    assert "no operator runs" not in page


def test_headers_name_a_unit_where_numbers_are_bare(report: Path) -> None:
    header, *rows = (report / "tables" / "comparison.csv").read_text().splitlines()
    assert header.startswith("profile,step (s),")
    assert len(rows) == 2
    shown = next(line for line in (report / "report.md").read_text(encoding="utf-8").splitlines() if "step |" in line)
    assert shown.startswith("| profile | step | examples a second | FLOP rate |")
    assert "(B)" not in shown


def test_the_html_page_needs_nothing_else(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert all(one.startswith("data:") or (report / one).is_file() for one in sources)
    assert "<script" not in page
    assert "first<model>" not in page  # a model's name is no markup
    assert page.count("<img") == 7  # three a profile, and the comparison


def test_nothing_stored_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="there are no profiles in"):
        render(tmp_path)


def test_formats_of_one_model_stand_side_by_side(tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        plant(tmp_path, f"net-{dtype}", device="cuda", model="net", dtype=dtype)
    plant(tmp_path, "other")
    report = render(tmp_path).parent
    page = (report / "report.md").read_text(encoding="utf-8")
    assert "## Operators of net-float32 by number format" in page
    assert "| name | float32 | float16 | float16 / float32 |" in page
    assert page.count("by number format") == 2  # operators and kernels; the other model has one format
    table = pd.read_csv(report / "tables" / "net-float32.kernels-by-format.csv")
    assert list(table) == ["operator", "name", "float32 (s)", "float16 (s)", "float16 / float32"]
    assert (table["float16 / float32"] == 1).all()
    assert "Kernels of net-float32 by number format" in (report / "index.html").read_text(encoding="utf-8")


def test_each_profile_links_to_its_trace_as_a_page(report: Path) -> None:
    pages = sorted(report.glob("*.trace.html"))
    assert len(pages) == 2
    told = (report / "index.html").read_text(encoding="utf-8")
    for page in pages:
        assert f'<a href="{page.name}">The trace as a timeline</a>' in told
        assert "aten::relu" in page.read_text(encoding="utf-8")


# -- two profiles ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def change(tmp_path_factory: pytest.TempPathFactory) -> Difference:
    """The same trace, its step first 800 us and then twice as long: every part doubles."""
    folder = tmp_path_factory.mktemp("two")
    plant(folder, "once")
    plant(folder, "twice", dtype="bfloat16")
    profiles = []
    for label, factor in (("once", 1.0), ("twice", 2.0)):
        captured = Capture.read(folder / "profiles" / f"{label}.json")
        captured = replace(captured, plain=tuple(factor * seconds for seconds in captured.plain))
        profiles.append(analyse(captured, read(folder / captured.trace)))
    return difference(*profiles)


def test_the_parts_of_a_difference_add_up_to_the_step(change: Difference) -> None:
    rows = change.rows.set_index("name")
    assert rows["before"].sum() == pytest.approx(800e-6)
    assert rows["after"].sum() == pytest.approx(1600e-6)
    # 600 of 1000 us traced are mm, 290 are nothing
    assert rows.loc["aten::mm", "difference"] == pytest.approx(0.6 * 800e-6)
    assert rows.loc["nothing computes", "difference"] == pytest.approx(0.29 * 800e-6)
    assert (change.ratio.value, change.certain) == (pytest.approx(2.0), True)
    assert change.ratio.low < 2 < change.ratio.high
    assert ("dtype", "float32", "bfloat16") in change.settings
    assert change.rows["name"].iloc[0] == "aten::mm"  # the largest change is first


def test_the_difference_says_which_operators_did_it(change: Difference) -> None:
    said = profile_difference.sentences(change)
    # the interval of each median ends at the shortest and the longest of eight: 2 * 790 / 820 and 2 * 820 / 790
    assert said[0] == "A step of twice takes 1.60 ms, one of once 800 µs: 2.00 [1.93, 2.08] times as long."
    assert said[1].startswith(
        "The step changes by +800 µs, most of it in aten::mm +480 µs (60%), nothing computes +232 µs"
    )
    same = difference(change.before, change.before)
    assert "do not tell that the step changed" in profile_difference.sentences(same)[1]


def test_the_page_of_a_difference_has_its_picture_and_needs_nothing(change: Difference) -> None:
    page = profile_difference.page(change)
    assert page.count('<rect class="worse"') == 4  # three operators, and nothing
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == ["data:,"]
    assert "<script" not in page
    assert "dtype float32 → bfloat16" in page
    told = json.loads(json.dumps(difference_json(change), allow_nan=False))
    assert [one["name"] for one in told["operators"]] == list(change.rows["name"])
