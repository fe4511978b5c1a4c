"""A report's page in a browser: it fits, answers to clicks and keys, is readable, and asks nobody for anything."""

from __future__ import annotations

import pytest

from depthgauge.reports.escaping import slug

pytestmark = pytest.mark.slow

WIDTHS = (400, 1400)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(opened, width):
    """Folded or not; what is wide has a box of its own, in which it is scrolled."""
    with opened(width) as shown:
        assert shown.overflow() == 0
        shown.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert shown.overflow() == 0
        assert shown.page.evaluate("[...document.querySelectorAll('table')].some((table) => table.clientWidth > 400)")


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)], ids=["light", "dark"])
def test_axe_finds_nothing_in_the_whole_page(opened, width, dark):
    """Contrast, landmarks, names of what can be clicked, order of headings, ..., with everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    with opened(width, dark=dark) as shown:
        shown.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        found = axe.Axe().run(shown.page)
        assert [_words(violation) for violation in found.response["violations"]] == []
        passed = {rule["id"] for rule in found.response["passes"]}
        assert passed >= {"color-contrast", "landmark-one-main", "page-has-heading-one", "svg-img-alt", "link-name"}


def _words(violation):
    nodes = [" ".join(map(str, node["target"])) for node in violation["nodes"][:3]]
    summary = violation["nodes"][0].get("failureSummary", "")
    return f"{violation['id']} ({violation['help']}): {', '.join(nodes)}; {summary}"


def row(claim):
    """The id of a claim's row."""
    return f"claim-{slug(claim)}"


def visible(shown):
    """Rows of the claims that a reader sees."""
    return shown.page.eval_on_selector_all(
        ".verdict", "rows => rows.filter((row) => !row.hidden && row.checkVisibility()).map((row) => row.id)"
    )


def test_claims_are_filtered_by_status_and_words(opened):
    with opened() as shown:
        everything = visible(shown)
        assert len(everything) == 4  # two more are folded: nobody asked them
        box = shown.find("#filter input[name=status][value=holds]")
        box.check()
        assert visible(shown) == [row("shown/decay")]
        box.uncheck()
        words = shown.find("#filter input[name=text]")
        words.fill("EXPLODES")
        assert visible(shown) == [row("N01")]
        words.fill("no claim says this")
        assert visible(shown) == []
        words.fill("comes back")  # folded, until it is looked for
        assert visible(shown) == [row("shown/lost")]
        words.fill("")
        assert set(visible(shown)) >= set(everything)


def test_a_table_is_sorted_by_the_column_that_is_clicked(opened):
    with opened() as shown:
        table = shown.find("#study-shown details.table", has_text="signals").first
        table.locator("summary").click()
        heads = table.locator("th")

        def values():
            return [float(text.replace("−", "-")) for text in table.locator("tbody td.num").all_inner_texts()]

        unsorted = values()
        heads.nth(1).locator("button").click()
        assert heads.nth(1).get_attribute("aria-sort") == "ascending"
        assert values() == sorted(unsorted) != unsorted
        heads.nth(1).locator("button").click()
        assert heads.nth(1).get_attribute("aria-sort") == "descending"
        assert values() == sorted(unsorted, reverse=True)
        heads.nth(0).locator("button").press("Enter")
        names = table.locator("tbody td:first-child").all_inner_texts()
        assert names == sorted(names)
        assert heads.nth(1).get_attribute("aria-sort") is None


def test_evidence_is_folded_and_a_link_into_it_opens_it(opened):
    with opened() as shown:
        folds = shown.find("section.study details")
        assert folds.count() >= 8
        assert shown.find("section.study details[open]").count() == 0
        folds.first.locator("summary").first.click()
        assert shown.find("section.study details[open]").count() == 1
        lost = shown.find(f"#{row('shown/lost')}")
        assert not lost.is_visible()
        shown.find(f"#mosaic a[href='#{row('shown/lost')}']").click()
        assert lost.is_visible()


@pytest.mark.parametrize("script", [True, False], ids=["script", "none"])
def test_a_figure_is_enlarged_and_put_back(opened, script):
    with opened(script=script) as shown:
        figure = shown.find("[id='figure-shown.signals']")
        before = figure.bounding_box()
        figure.locator("a.enlarge").click()
        enlarged = figure.bounding_box()
        assert enlarged["width"] >= 1400 - 20
        assert enlarged["width"] > before["width"]
        if script:
            shown.page.keyboard.press("Escape")
        else:
            figure.locator("a.close").click()
        assert figure.bounding_box()["width"] == before["width"]


@pytest.mark.parametrize("script", [True, False], ids=["script", "none"])
def test_a_figure_is_stepped_through(opened, script):
    with opened(script=script) as shown:
        figure = shown.find("[id='figure-shown.steps']")
        steps, pictures = figure.locator("fieldset.steps input[type=radio]"), figure.locator("fieldset.steps .picture")
        seen = []
        for index in range(steps.count()):
            steps.nth(index).check()
            seen.append([place for place in range(pictures.count()) if pictures.nth(place).is_visible()])
        assert seen == [[0], [1], [2]]
        assert figure.locator("fieldset.steps label").all_inner_texts()[0].strip().endswith("0.5")


def test_pictures_have_pixels(opened):
    """Each is drawn from what the file holds, those of the first screen among them."""
    with opened() as shown:
        thumbs = shown.find("#found .headlines a")
        assert thumbs.count() >= 2
        loaded = shown.page.evaluate(
            """Promise.all([...document.querySelectorAll("image, img")].map(async (one) => {
                const picture = new Image();
                picture.src = one.href ? one.href.baseVal : one.src;
                await picture.decode();
                return picture.naturalWidth > 300;
            }))"""
        )
        assert len(loaded) >= 6
        assert all(loaded)


def test_links_of_the_page_lead_somewhere(opened):
    with opened() as shown:
        lost = shown.page.evaluate(
            """[...document.querySelectorAll("a[href^='#'], use")].map((link) => link.getAttribute("href"))
                .filter((href) => !document.getElementById(decodeURIComponent(href.slice(1))))"""
        )
        assert lost == []


def test_without_its_script_the_page_shows_everything_but_the_filter(opened):
    with opened(script=False) as shown:
        assert not shown.find("#filter").is_visible()
        assert shown.find(".verdict").count() == 6
        assert shown.find("table.data th button").count() == 0
        assert shown.overflow() == 0


def test_the_page_runs_no_script_but_its_own(opened):
    """Its policy stops one that somebody puts into it."""
    with opened() as shown:
        shown.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.stolen = true";
                document.body.append(script);
            }"""
        )
        assert shown.page.evaluate("window.stolen === undefined")
        assert any("Content Security Policy" in complaint for complaint in shown.complaints)
        shown.complaints.clear()
