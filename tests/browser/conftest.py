"""A small report with everything that a page has, rendered once, and a headless Chromium that opens it from disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from depthgauge import running
from depthgauge.reports import render
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Figure, Findings, Sentence, Status, Verdict

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HEIGHT = 900

CLAIMS = (
    Claim("N01", "with sigma_w above 1 the gradient of tanh explodes"),
    Claim("shown/decay", "below the critical sigma_w a signal decays"),
    Claim("shown/far", "an_identifier_so_long_that_no_line_of_a_telephone_holds_it_must_break_somewhere_of_its_own"),
    Claim("shown/few", "a few seeds are enough", topic="cost"),
    Claim("shown/fixed", "depth is a reparametrization", topic="cost"),
    Claim("shown/lost", "what was lost comes back", topic="stability"),
)


def _run(cases: Any, _context: Any) -> Iterator[Any]:
    for case in cases:
        yield case.rows("signal", np.linspace(0, case.number("sigma_w"), 40) + case.integer("seed"))


def _verdicts() -> tuple[Verdict, ...]:
    measured = {"low": -0.2, "high": 0.1, "observed": -0.05, "predicted": 0.0, "n": 8, "method": "t interval, 95 %"}
    statuses = {
        "N01": (Status.DEPENDS, "false up to sigma_w 1, true from 2"),
        "shown/decay": (Status.HOLDS, "true"),
        "shown/far": (Status.FAILS, "false"),
        "shown/few": (Status.INCONCLUSIVE, ""),
        "shown/fixed": (Status.NOT_APPLICABLE, ""),
        "shown/lost": (Status.NOT_MEASURED, ""),
    }
    return tuple(
        Verdict(claim.id, claim.text, *statuses[claim.id][:1], says=statuses[claim.id][1], unit="ln a layer",
                table="signals", condition="tanh", margin=0.3, why="Eight seeds say so.", **measured)
        if index < 4 else Verdict(claim.id, claim.text, statuses[claim.id][0], why="No case asks it.")
        for index, claim in enumerate(CLAIMS)
    )  # fmt: skip


def _analyse(_frame: pd.DataFrame) -> Findings:
    wide = pd.DataFrame({f"column_{number}": np.arange(12.0) * (-1) ** number for number in range(24)})
    names = [f"name {number % 5}" for number in range(12)]
    signals = pd.DataFrame({"activation": names, "value": [9, 10, -3, 0.5, 2, 7, 1, 4, 8, 6, 11, -20]})
    answers = (
        Sentence("A signal through 40 layers keeps 5 % of itself at sigma_w 1.", "signals", ("N01", "shown/decay")),
        Sentence("Critical is sigma_w 1 for tanh, by LSUV and by theory.", "steps", ("shown/far",)),
        Sentence("Eight seeds do not tell what it costs.", claims=("shown/few",)),
    )
    return Findings(_verdicts(), {"signals": signals, "wide": wide}, answers, shown=("signals", "wide"))


def _canvas(slope: float) -> Any:
    canvas, axis = plt.subplots()
    axis.plot(slope * np.linspace(0, 1, 40), label=f"sigma_w {slope}")
    axis.set(xlabel="layer", ylabel="signal")
    return canvas


def _plot(_findings: Findings) -> Iterator[Figure]:
    yield Figure("signals", _canvas(1.0), "A signal decays", "Line: mean of 8 seeds.", "A falling line")
    steps = tuple((f"sigma_w = {slope}", _canvas(slope)) for slope in (0.5, 1.0, 2.0))
    yield Figure("steps", _canvas(0.5), "Signals at each sigma_w", "Step through sigma_w.", "A line a step", steps)
    yield Figure("aside", _canvas(3.0), "Beside the matter", "What nobody asked.", "Another line")


def studies() -> dict[str, Study]:
    """Two that ask the same, under two questions."""

    def study(name: str, topic: str) -> Study:
        return Study(
            name, f"What does {name} show?", {"quick": (Grid({"sigma_w": (1.0, 2.0)}, seeds=8),)},
            run=_run, analyse=_analyse, plot=_plot, claims=CLAIMS, topic=topic,
            method="Signals are measured.\n\n| figure | interval |\n| --- | --- |\n| mean | t |\n",
            caveats=("Width is 512 throughout.",),
        )  # fmt: skip

    return {"shown": study("shown", "signal"), "again": study("again", "start")}


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small report."""
    folder = tmp_path_factory.mktemp("page")
    asked = studies()
    for study in asked.values():
        stored = running.run(study, out=folder, workers=0).stored
    return render(stored, asked).with_name("index.html")


@dataclass
class Opened:
    """A page that was opened, and what it asked for and complained of until now."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def find(self, selector: str, **options: Any) -> Any:
        """Everything that a CSS selector finds."""
        return self.page.locator(selector, **options)

    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width


Open = Callable[..., Any]


def _starts(program: str) -> bool:
    """Whether it is whole: one that is just being installed is not."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(_starts, filter(None, map(shutil.which, PROGRAMS))), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is there and starts")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, index: Path) -> Open:
    """Opens the page in a window of its own: `with opened(width=400, dark=True) as shown`."""

    @contextmanager
    def open_page(width: int = 1400, *, dark: bool = False, script: bool = True) -> Iterator[Opened]:
        context = chromium.new_context(
            viewport={"width": width, "height": HEIGHT}, color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )  # fmt: skip
        context.set_default_timeout(15_000)
        shown = Opened(context.new_page())
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        try:
            shown.page.goto(index.as_uri())
            yield shown
        finally:
            context.close()
        assert [url for url in shown.requests if not url.startswith("data:")] == [index.as_uri()]
        assert shown.complaints == []

    return open_page
