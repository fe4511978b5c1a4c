"""The page of a check in a browser: it fits a phone, is readable in the dark, and asks nobody for anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from depthgauge import checking
from depthgauge.checking import Answer, Checked, Finding, Measure, Status, Tried, evidence
from depthgauge.checking.about import About

pytestmark = pytest.mark.slow

LONG = "an_identifier_so_long_that_no_line_of_a_telephone_holds_it.and_must_break_somewhere_of_its_own.weight"


def _draw(answer):
    canvas = Figure(figsize=(7, 3.5))
    canvas.subplots().plot(answer.tables["wide"]["value"])
    return canvas


@pytest.fixture(scope="session")
def page(tmp_path_factory) -> Path:
    """A page with an answer of each status, a remedy that was tried, a figure, a wide table and a comparison."""
    ratio = Measure("gradient at the first layer", 4e-4, 3e-4, 5e-4, "", "over 4 batches")
    worst = Finding(
        "vanishing", Status.BROKEN, f"The gradient of `{LONG}` is lost.", "initialize it", "the loss falls", (LONG,),
        ratio, Tried("He initialization", "gradient ratio", 4e-4, 0.8),
    )  # fmt: skip
    wide = pd.DataFrame({"value": [1.0, 2.0]} | {f"column_{place}": [0.5, 0.25] for place in range(24)})
    answers = (
        Answer("signal", "Does it arrive?", "It does not.", (worst,), ratio, {"wide": wide}, 1.0),
        Answer("data", "Are data right?", "Look.", (Finding("scale", Status.LOOK, "Look.", "look"),)),
        Answer("batch", "Is it right?", "No time.", (Finding("not_measured", Status.UNDECIDED, "No time."),)),
        Answer("cost", "What does it cost?", "A step takes 5 ms.", (), Measure("step", 0.005, 0.004, 0.006, "s")),
    )
    about = About("my.train:setup", "MLP", 10, 10, "SGD", "float32 32 x 64", started="2026-11-26 20:00:00 UTC")
    with pytest.MonkeyPatch.context() as patch:
        planted = tuple(dataclasses.replace(each, draw=_draw) for each in checking.QUESTIONS)
        patch.setattr(evidence, "QUESTIONS", planted)
        found = Checked(answers, 30.0, about)
        return found.write(tmp_path_factory.mktemp("check"), found)


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1400, False)], ids=["dark phone", "screen"])
def test_it_fits_is_readable_and_loads_nothing(chromium, page, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    scheme = "dark" if dark else "light"
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, complaints = [], []
    try:
        shown = context.new_page()
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: complaints.append(message.text))
        shown.goto(page.as_uri())
        for _ in range(2):  # folded, and then not
            excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert shown.evaluate(excess) == 0
            shown.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert shown.locator("section.card h2").first.inner_text().endswith("Does it arrive?")
        assert shown.locator("figure img").evaluate("image => image.naturalWidth") > 300
        bars = shown.locator(".bar")
        assert width == 400 or bars.nth(0).bounding_box()["width"] < bars.nth(1).bounding_box()["width"] / 50
        found = axe.Axe().run(shown).response
        assert [(rule["id"], rule["nodes"][0]["target"]) for rule in found["violations"]] == []
        assert {rule["id"] for rule in found["passes"]} >= {"color-contrast", "landmark-one-main", "image-alt"}
    finally:
        context.close()
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert complaints == []
