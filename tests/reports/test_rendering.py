import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from base64 import b64encode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from depthgauge import drawing
from depthgauge.reports import IncompleteReportError, pages, render, style
from depthgauge.verdict import Claim, Figure, Findings, Sentence, Status, Verdict

HOSTILE = "<script>alert(1)</script> | `x` ](javascript:alert(1)) **b** \x1b[31mred\x1b[0m\n# next {{ 7*7 }} <b title='"


def tree(directory: Path) -> dict[str, bytes]:
    report = directory / "report"
    return {str(path.relative_to(report)): path.read_bytes() for path in sorted(report.rglob("*")) if path.is_file()}


def findings_of(directory: Path) -> dict:
    return json.loads((directory / "report" / "findings.json").read_text("utf-8"), parse_constant=pytest.fail)


class Page(HTMLParser):
    """What of a page could reach out, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.ids, self.open = set(), [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in {"meta", "link", "img", "br", "hr", "input", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def study(conftest_parts):
    return conftest_parts.make_study()


@pytest.fixture
def one(conftest_parts, tmp_path):
    """Render one study with these parts changed, from these rows, and return the directory."""

    def rendered(frame=None, *, name="gradient_flow", run=None, **changes):
        parts = conftest_parts
        frame = parts.rows() if frame is None else frame
        changes.setdefault("plot", lambda _: ())
        stored = parts.FakeStored(tmp_path, {name: frame}, run or parts.make_run(name))
        render(stored, {name: parts.make_study(name, **changes)})
        return tmp_path

    return rendered


def test_everything_is_there(stored, study):
    assert render(stored, {"gradient_flow": study}) == stored.directory / "report" / "report.md"
    figures = [f"figures/gradient_flow.{name}.{kind}" for name in ("map", "signal") for kind in ("png", "svg")]
    tables = ["tables/gradient_flow.raw.csv", "tables/gradient_flow.signal.csv"]
    assert sorted(tree(stored.directory)) == sorted(
        ["report.md", "index.html", "gradient_flow.md", "findings.json", *figures, *tables]
    )
    assert sorted(path.name for path in stored.directory.iterdir()) == ["report"]


def in_order(text: str, wanted: list[str]) -> None:
    place = 0
    for part in wanted:
        assert part in text[place:], part
        place = text.index(part, place)


def test_the_report_says_what_a_reader_asks_in_that_order(stored, study):
    text = render(stored, {"gradient_flow": study}).read_text("utf-8")
    in_order(text, [
        "1 study, preset quick: 28 cases, 4 failed, 2 diverged.", "1 holds", "1 fails",
        "## What this run found", "Tanh loses", f"\n## {study.question}",
        "### What the course notes claim", "✗ fails | **N01**", "−1.27 [−1.37, −1.17] nats a layer",
        "predicted −1.2", "24 seeds", "*To settle it:*", "<summary>How these were decided</summary>", "Holm over 12",
        "## Evidence", "(gradient_flow.md)", "## What was asked", "| quick |", "## Environment", "AMD EPYC",
        "depthgauge run gradient_flow --preset quick",
    ])  # fmt: skip
    lines = text.splitlines()
    assert lines[lines.index("## What this run found") + 3] == "| --- | --- |"  # else no code host makes a table of it
    own = (stored.directory / "report/gradient_flow.md").read_text("utf-8")
    in_order(own, [
        study.question, "Tanh loses", "✗ fails | **N01**", "## More figures", "(figures/gradient_flow.signal.png)",
        "band: two standard errors", "(tables/gradient_flow.signal.csv)", "ValueError: no such width",
        "## How it was measured", "Wilson", "Width is 512 throughout.", "## Environment",
    ])  # fmt: skip


def test_raw_markdown_is_tidy(stored, study):
    report = render(stored, {"gradient_flow": study}).parent
    for page in report.glob("*.md"):
        text = page.read_text("utf-8")
        assert "\n\n\n" not in text
        assert text.endswith("```\n")


def test_links_of_the_pages_lead_somewhere(stored, study):
    report = render(stored, {"gradient_flow": study}).parent
    for page in report.glob("*.md"):
        tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))
        inner = [child for token in tokens for child in token.children or []]
        links = {
            str(child.attrGet("href") or child.attrGet("src"))
            for child in inner
            if child.type in {"link_open", "image"}
        }
        assert links
        assert all((report / link).is_file() for link in links if not link.startswith(("https:", "#")))
    html = Page((report / "index.html").read_text("utf-8"))
    for tag, name, value in html.attributes:
        if tag in {"a", "use"} and name == "href" and not value.startswith("https:"):
            assert value[1:] in html.ids if value.startswith("#") else (report / value).is_file()
    assert len(html.ids) == len(set(html.ids))


def test_findings_json_is_what_the_design_says(stored, study):
    render(stored, {"gradient_flow": study})
    found = findings_of(stored.directory)
    assert found["schema"] == 2
    assert found["run"] == stored.run["fingerprint"]
    entry = found["studies"]["gradient_flow"]
    assert (entry["question"], entry["preset"]) == (study.question, "quick")
    assert (entry["cases"], entry["failed"], entry["diverged"]) == (28, 4, 2)
    assert entry["tables"]["signal"] == "tables/gradient_flow.signal.csv"
    assert set(entry["verdicts"][0]) == {
        "id", "claim", "status", "observed", "low", "high", "predicted", "unit", "n", "counted", "table", "condition",
        "answer", "method", "why", "reference", "margin", "log", "says", "needed", "at_edge", "topic", "settle",
        "settle_command",
    }  # fmt: skip
    assert set(entry["answers"][0]) == {"text", "figure", "claims"}
    first = entry["verdicts"][0]
    assert (first["id"], first["status"], first["observed"], first["low"]) == ("N01", "fails", 1.5**100, None)
    assert all((stored.directory / "report" / path).is_file() for path in entry["figures"])


def test_numbers_that_are_none_stay_strict_json(one):
    verdict = Verdict("a", "b", Status.HOLDS, np.float32("nan"), -np.inf, np.inf, np.int64(3), n=np.int64(7))
    directory = one(analyse=lambda _: Findings((verdict,)), claims=(Claim("a", "b"),))
    found = findings_of(directory)["studies"]["gradient_flow"]["verdicts"][0]
    assert [found[name] for name in ("observed", "low", "high", "predicted", "n")] == ["nan", "-inf", "inf", 3.0, 7]


def test_a_diverged_case_stays_one_case(one, conftest_parts):
    frame = conftest_parts.rows()
    step = frame[frame["metric"] == "diverged"].assign(step=9)
    entry = findings_of(one(pd.concat([frame, step])))["studies"]["gradient_flow"]
    assert (entry["cases"], entry["diverged"]) == (28, 2)


def test_rendering_again_gives_the_same_bytes_whatever_the_surroundings(stored, study, tmp_path, monkeypatch):
    render(stored, {"gradient_flow": study})
    first = tree(stored.directory)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "matplotlibrc").write_text("axes.facecolor: red\nxtick.direction: in\naxes.labelweight: bold\n")
    script = textwrap.dedent(f"""
        import importlib.util, pathlib, sys
        spec = importlib.util.spec_from_file_location("parts", {str(Path(__file__).with_name("conftest.py"))!r})
        parts = sys.modules["parts"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(parts)
        from depthgauge.reports import render
        here = parts.FakeStored(pathlib.Path("."), {{"gradient_flow": parts.rows()}}, parts.make_run("gradient_flow"))
        render(here, {{"gradient_flow": parts.make_study()}})
    """)
    surroundings = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONUTF8": "0", "MPLBACKEND": "svg"}
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    subprocess.run([sys.executable, "-c", script], cwd=elsewhere, env={**os.environ, **surroundings}, check=True)
    assert tree(elsewhere) == first


def test_no_byte_tells_the_day_or_the_program(stored, study):
    render(stored, {"gradient_flow": study})
    for name, content in tree(stored.directory).items():
        if name.endswith(("png", "svg")):
            assert b"matplotlib.org" not in content
            assert b"<dc:date>" not in content


def test_the_page_needs_no_network_and_runs_its_own_script_alone(stored, study):
    render(stored, {"gradient_flow": study})
    source = (stored.directory / "report" / "index.html").read_text("utf-8")
    page = Page(source)
    assert not page.open
    assert not page.tags & {"iframe", "object", "embed", "base", "video", "audio"}
    [script] = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [value for tag, name, value in page.attributes if tag == "meta" and str(value).startswith("default-src")]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "srcset", "poster", "action"} or (tag, name) in {("link", "href"), ("image", "href")}:
            assert value.startswith("data:")
    style_sheet = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style_sheet
    assert "@import" not in style_sheet


def test_a_picture_beside_a_finding_is_that_of_its_figure_and_its_bytes_stand_once(one, conftest_parts):
    def analyse(frame):
        answers = (Sentence("first", "signal", ("N05",)), Sentence("second", "signal"), Sentence("third"))
        return replace(conftest_parts.analyse(frame), answers=answers)

    directory = one(analyse=analyse, plot=conftest_parts.plot)
    source = (directory / "report" / "index.html").read_text("utf-8")
    page = Page(source)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("use", "href")] == [
        "#picture-gradient_flow.signal"
    ]
    assert source.count('id="picture-gradient_flow.signal"') == 1
    assert source.count("data:image/") == 2
    assert (
        source.index('id="figure-gradient_flow.signal"')
        < source.index("More figures")
        < source.index('id="figure-gradient_flow.map"')
    )
    [linked] = re.findall(r'<p>First\s*<span class="evidence"><a href="#(.*?)">N05</a>', source)
    assert linked in page.ids


def test_without_its_script_the_page_hides_the_filter_and_nothing_else(stored, study):
    render(stored, {"gradient_flow": study})
    page = Page((stored.directory / "report" / "index.html").read_text("utf-8"))
    assert [tag for tag, name, _ in page.attributes if name == "hidden"] == ["form"]


def test_the_page_is_accessible(stored, study):
    render(stored, {"gradient_flow": study})
    page = Page((stored.directory / "report" / "index.html").read_text("utf-8"))
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert alts[0] == "Tanh loses three percent of its signal a layer: log of the signal's norm (nats) against layer"
    assert len(alts) == 2
    classes = [
        value for tag, name, value in page.attributes if (tag, name) == ("svg", "class") and "strip" not in value
    ]
    assert classes == ["picture", "picture map"]  # colour stands for numbers in a map: it is not inverted in the dark
    assert ("html", "lang", "en") in page.attributes
    assert {"main", "nav", "header", "th"} <= page.tags


def linear(colour: str) -> np.ndarray:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels])


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def test_text_has_the_contrast_that_wcag_asks_for():
    css = (Path(sys.modules[render.__module__].__file__).parent / "templates" / "page.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media", 2)[:2])
    pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "stripe", "code")]
    pairs += [(status, f"{status}-bg") for status in ("holds", "fails", "depends", "inconclusive")]
    for scheme in (light, dark):
        for text, ground in pairs:
            bright, dim = sorted((luminance(scheme[text]), luminance(scheme[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)


def hostile_parts():
    table = pd.DataFrame({HOSTILE: [HOSTILE, "=1+1"], "x": [1.0, np.inf]})

    def analyse(_):
        verdict = Verdict(HOSTILE, HOSTILE, Status.FAILS, 1.0, unit=HOSTILE, method=HOSTILE, why=HOSTILE)
        return Findings((verdict,), {HOSTILE: table, "../../up": table}, (HOSTILE,), (HOSTILE, "../../up"))

    def plot(_):
        yield Figure("../../" + HOSTILE, Canvas(), HOSTILE, HOSTILE)

    return {
        "analyse": analyse, "plot": plot, "question": HOSTILE, "method": HOSTILE, "caveats": (HOSTILE,),
        "claims": (Claim(HOSTILE, HOSTILE),),
    }  # fmt: skip


def test_hostile_names_are_only_text(one, conftest_parts):
    frame = conftest_parts.rows().assign(message=HOSTILE)
    frame.loc[frame["status"] == "error", "case"] = HOSTILE
    run = conftest_parts.make_run("gradient_flow")
    run["request"]["gradient_flow"]["preset"] = HOSTILE
    run["command"] = f"depthgauge run --out '{HOSTILE} ```'"
    run["fingerprint"] = {**run["fingerprint"], "cpu": HOSTILE, HOSTILE: HOSTILE, "more": [HOSTILE]}
    run["started"] = HOSTILE
    directory = one(frame, run=run, **hostile_parts())
    files = tree(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["report"]
    assert all(re.fullmatch(r"(?:\w+/)?[\w.-]+", name) for name in files)

    page = Page(files["index.html"].decode())
    assert not page.open
    assert "b" not in page.tags
    assert [tag for tag, *_ in page.attributes].count("script") == 0
    assert not any(str(value).lower().startswith("javascript") for _, _, value in page.attributes)
    assert "".join(page.text).count("<script>alert(1)</script> | `x` ](javascript:alert(1)) **b** red") > 15
    assert "49" not in "".join(page.text)

    for name in ("report.md", "gradient_flow.md"):
        source = files[name].decode()
        assert "\x1b" not in source
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(source)
        inner = [child for token in tokens for child in (token, *(token.children or []))]
        html = "".join(token.content for token in inner if token.type in {"html_inline", "html_block"})
        ours = r"</?(?:details|summary)>|<img src=\"figures/[\w.-]+\" width=\"330\" alt=\"[^\"<>]*\">"
        assert "<" not in re.sub(ours, "", html)
        links = [str(token.attrGet("href")) for token in inner if token.type == "link_open"]
        assert all(re.fullmatch(r"[\w./-]+|#what-was-asked", link) for link in links)
        headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
        assert "next {{ 7*7 }} <b title='" not in headings
        widths = {}
        for token in inner:
            if token.type == "tr_open":
                widths[token.map[0]] = 0
                row = token.map[0]
            elif token.type in {"td_open", "th_open"}:
                widths[row] += 1
        assert set(widths.values()) <= {2, 4, 5, 6, 8}

    csv_file = next(content for name, content in files.items() if name.endswith(".csv"))
    assert b"'=1+1" in csv_file
    assert b"\x1b" not in csv_file
    assert findings_of(directory)["studies"]["gradient_flow"]["verdicts"][0]["claim"] == HOSTILE


def test_a_foreign_study_name_cannot_leave_the_report_or_replace_its_pages(conftest_parts, tmp_path):
    names = ("report", "../../x", "index")
    stored = conftest_parts.FakeStored(tmp_path / "run", {name: conftest_parts.rows(2) for name in names})
    stored.directory.mkdir()
    with pytest.raises(IncompleteReportError, match=r"No study named '\.\./\.\./x' was found"):
        render(stored, {"report": conftest_parts.make_study("report")})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (stored.directory / "report" / "report.md").read_text("utf-8").startswith("# depthgauge report")
    assert len(list((stored.directory / "report").glob("*.md"))) == 4


def failing(error=None):
    def fail(*_):
        raise error or ValueError("the frame has no column 'loss'")

    return fail


def test_a_failing_analysis_costs_no_other_study(conftest_parts, tmp_path):
    parts = conftest_parts
    studies = {"bad": parts.make_study("bad", analyse=failing()), "good": parts.make_study("good")}
    stored = parts.FakeStored(tmp_path, {name: parts.rows() for name in studies}, parts.make_run(*studies))
    with pytest.raises(IncompleteReportError, match="bad: Its analysis failed: ValueError: the frame has no") as raised:
        render(stored, studies)
    assert list(raised.value.errors) == ["bad"]
    assert raised.value.path.is_file()
    assert "Its analysis failed: ValueError: the frame has no column 'loss'" in (tmp_path / "report/bad.md").read_text()
    entries = findings_of(tmp_path)["studies"]
    assert len(entries["good"]["figures"]) == 4
    assert entries["bad"]["cases"] == 28
    assert [verdict["status"] for verdict in entries["bad"]["verdicts"]] == ["inconclusive"] * 5
    assert entries["bad"]["problems"]


@pytest.mark.parametrize(
    "answer", [None, Findings((Verdict("N01", "b", "wrong"),)), Findings((), {"t": [1]}), Findings((), {}, (3,))]
)
def test_an_analysis_that_returns_something_else_is_a_failed_one(one, answer):
    with pytest.raises(IncompleteReportError, match=r"Its analysis failed: (Type|Value)Error"):
        one(analyse=lambda _: answer)


def test_rows_that_cannot_be_read_are_said_so(conftest_parts, tmp_path):
    class Broken(conftest_parts.FakeStored):
        frame = failing(OSError("chunk 7 is corrupt"))

    with pytest.raises(IncompleteReportError, match="Its rows could not be read: OSError: chunk 7 is corrupt"):
        render(Broken(tmp_path, {"s": None}), {"s": conftest_parts.make_study("s")})


def test_a_finding_without_words_is_none_and_a_text_is_one(one):
    def told(*answers):
        directory = one(analyse=lambda _: Findings((), {}, *answers), claims=())
        return findings_of(directory)["studies"]["gradient_flow"]["answers"]

    assert told(("", " ", Sentence("It grows.", None, "N01"))) == [
        {"text": "It grows.", "figure": "", "claims": ["N01"]}
    ]
    assert [answer["text"] for answer in told("It grows.")] == ["It grows."]


def test_a_figure_of_any_name_is_seen_in_markdown(one):
    directory = one(
        analyse=lambda _: Findings((), {}, (Sentence("It grows.", "size <1>"),)),
        claims=(),
        plot=lambda _: [Figure("size <1>", plt.figure(), "It grows")],
    )
    [source] = re.findall('<img src="([^"]+)"', tree(directory)["report.md"].decode())
    assert unescape(source) in tree(directory)


def test_a_failing_plot_keeps_the_verdicts_and_the_other_figures(one, tmp_path):
    def plot(_):
        yield Figure("first", plt.figure(), "first")
        yield Figure("first", plt.figure(), "again")
        broken = plt.figure()
        broken.text(0, 0, r"$\nonsense{$")
        yield Figure("second", broken, "second")
        yield Figure("third", "no canvas", "third")
        yield Figure("fourth", plt.figure(), "fourth")
        raise KeyError("sigma_w")

    with pytest.raises(IncompleteReportError, match="A figure is missing") as raised:
        one(plot=plot)
    assert len(raised.value.errors["gradient_flow"]) == 4
    entry = findings_of(tmp_path)["studies"]["gradient_flow"]
    assert [path for path in entry["figures"] if path.endswith("png")] == [
        "figures/gradient_flow.first.png",
        "figures/gradient_flow.fourth.png",
    ]
    assert entry["verdicts"][0]["status"] == "fails"
    assert not any(verdict["settle"].endswith("render the report again.") for verdict in entry["verdicts"])
    assert not plt.get_fignums()


def test_every_figure_that_fails_is_told(one):
    def plot(_):
        yield Figure("first", plt.figure(), "first")
        raise ExceptionGroup("figures", [KeyError("sigma_w"), TypeError("no number")])

    with pytest.raises(IncompleteReportError, match=r"KeyError: 'sigma_w'") as raised:
        one(plot=plot)
    assert len(raised.value.errors["gradient_flow"]) == 2


def test_a_figure_of_a_table_that_is_not_there_is_a_problem_of_its_own(one):
    @drawing.figure("rates", "Rates", "")
    def rates(rate): ...

    with pytest.raises(IncompleteReportError, match="A figure is missing: figure 'rates' is of a table 'rate' that"):
        one(plot=lambda findings: rates(findings.tables))


def test_claims_without_a_verdict_are_inconclusive(one):
    directory = one(analyse=lambda _: Findings(()), claims=(Claim("x", "y"),), plot=lambda _: ())
    assert findings_of(directory)["studies"]["gradient_flow"]["verdicts"] == [{
        "id": "x", "claim": "y", "status": "inconclusive", "observed": None, "low": None, "high": None,
        "predicted": None, "unit": "", "n": 0, "counted": "seeds", "table": "", "condition": "", "answer": "",
        "reference": "predicted", "margin": None, "log": False, "says": "", "needed": 0, "topic": "", "at_edge": "",
        "method": "", "why": "The analysis returned no verdict on this claim.", "settle_command": "",
        "settle": "No larger preset of the study asks for more: it stays open here.",
    }]  # fmt: skip


def test_two_verdicts_on_one_claim_are_none(one):
    two = tuple(Verdict("x", "y", status) for status in (Status.HOLDS, Status.FAILS))
    with pytest.raises(IncompleteReportError, match="it returned two verdicts on x, where each claim has one"):
        one(analyse=lambda _: Findings(two), claims=(Claim("x", "y"),), plot=lambda _: ())


def test_a_verdict_on_a_claim_that_is_not_declared_is_none(one):
    with pytest.raises(IncompleteReportError, match="verdict on 'yx' is none of the study's claims; did you mean 'x'"):
        one(analyse=lambda _: Findings((Verdict("yx", "y", Status.HOLDS),)), claims=(Claim("x", "y"),))


def test_values_that_are_none_of_them_finite_are_counted(one, conftest_parts, tmp_path):
    one(conftest_parts.rows(5, 2)[:10].assign(value=np.nan), analyse=lambda _: Findings(()), plot=lambda _: ())
    assert "- 10 of 10 values are not finite.\n" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("frame", [pd.DataFrame(), None])
def test_no_rows_still_make_a_report(one, conftest_parts, frame, tmp_path):
    one(conftest_parts.rows(1)[:0] if frame is None else frame, analyse=lambda rows: rows["case"].iloc[0])
    entry = findings_of(tmp_path)["studies"]["gradient_flow"]
    assert entry["cases"] == 0
    assert entry["problems"] == ["Nothing was measured: no case has been run yet"]
    assert {verdict["status"] for verdict in entry["verdicts"]} == {"not_measured"}


def test_a_study_of_which_every_case_failed_is_not_analysed_and_not_undecided(one, conftest_parts):
    failed = conftest_parts.rows().query("status != 'ok'")
    directory = one(failed, analyse=failing(), claims=(Claim("x", "y"), Claim("z", "w")))
    entry = findings_of(directory)["studies"]["gradient_flow"]
    why = "all 4 cases failed, most of them with: ValueError: no such width"
    assert entry["problems"] == [f"Nothing was measured: {why}"]
    assert [(verdict["status"], verdict["why"]) for verdict in entry["verdicts"]] == [("not_measured", why)] * 2
    assert f"> ⚠ Nothing was measured: {why}" in (directory / "report" / "gradient_flow.md").read_text("utf-8")


def test_what_applies_comes_first_and_the_rest_is_one_folded_line(conftest_parts, tmp_path):
    parts = conftest_parts
    request = {"preset": "quick", "model": "a.b:c", "left_out": ["no parameter"]}
    run = parts.make_run("able")
    run["request"] |= {
        "able": {**request, "not_applicable": {"N02": "it has no parameter 'norm'"}},
        "about": {**request, "not_applicable": {"N01": "it refuses", "N02": "it refuses"}},
    }

    class Stored(parts.FakeStored):
        def chunks(self, name):
            return () if name == "about" else super().chunks(name)

    stored = Stored(tmp_path, {"about": parts.rows()[:0], "able": parts.rows(3, 2)}, run)
    claims = (Claim("N01", "first"), Claim("N02", "second"))
    able = parts.make_study("able", plot=lambda _: ())
    studies = {"about": parts.make_study("about", claims=claims), "able": able}
    report = render(stored, studies).parent
    text = (report / "report.md").read_text("utf-8")
    assert text.index("\n- [able]") < text.index("\n- [about]")
    assert "**N01** a factor of 1.5 a layer" in text  # which the other study could not ask
    assert "| – not applicable | **N01**" not in text
    about = (report / "about.md").read_text("utf-8")
    assert "run on a.b:c alone: statements on other networks do not hold for it" in about
    assert about.count("<summary>2 claims without an answer in this run</summary>") == 1
    in_order(about, ["<details>", "– not applicable | **N01** first", "| it refuses |", "</details>"])
    statuses = [verdict["status"] for verdict in findings_of(tmp_path)["studies"]["about"]["verdicts"]]
    assert statuses == ["not_applicable"] * 2
    html = (report / "index.html").read_text("utf-8")
    folded = re.findall(r'class="group unasked">\n<summary>(.*)</summary>', html)
    assert folded == ["2 claims without an answer in this run"]  # N02 is of both studies, and is one row
    assert html.count('id="claim-N02"') == 1


@pytest.mark.parametrize(
    ("model", "cases", "status"),
    [("a.b:c", 3, "not_applicable"), ("", 3, "not_measured"), ("a.b:c", 24, "not_measured")],
)
def test_what_a_whole_run_on_one_model_says_nothing_of_does_not_apply_to_it(one, conftest_parts, model, cases, status):
    run = conftest_parts.make_run("gradient_flow")
    run["request"]["gradient_flow"]["model"] = model
    frame = conftest_parts.rows(cases, 2)
    frame = frame if cases > 3 else frame[frame["status"] == "ok"]
    missing = Verdict("N01", "first", Status.NOT_MEASURED, why="nothing was measured for it")
    directory = one(frame, run=run, analyse=lambda _: Findings((missing,)), claims=(Claim("N01", "first"),))
    [verdict] = findings_of(directory)["studies"]["gradient_flow"]["verdicts"]
    assert verdict["status"] == status


def test_a_grid_that_stopped_is_told_once(one, conftest_parts):
    run = conftest_parts.make_run("gradient_flow")
    why = "480 more cases are not run: all 24 cases that were run first, spread over a grid, ended with: Error: no"
    run["request"]["gradient_flow"]["stopped"] = [why]
    directory = one(run=run)
    assert (directory / "report" / "gradient_flow.md").read_text("utf-8").count(f"- {why}") == 1
    assert f"Stopped early: {why}." in (directory / "report" / "index.html").read_text("utf-8")
    assert findings_of(directory)["studies"]["gradient_flow"]["stopped"] == [why]


def test_a_run_that_was_cut_short_is_not_passed_off_as_whole(conftest_parts, tmp_path):
    parts = conftest_parts
    stored = parts.FakeStored(tmp_path, {"s": parts.rows(2)}, parts.make_run("s"), unfinished=2)
    text = render(stored, {"s": parts.make_study("s", plot=lambda _: ())}).read_text("utf-8")
    assert "is not finished: 2 of 3 chunks are missing" in text
    assert "> ⚠ Not finished: 2 of 3 chunks are missing" in (tmp_path / "report/s.md").read_text("utf-8")
    assert findings_of(tmp_path)["studies"]["s"]["unfinished"] == 2


@pytest.mark.parametrize(
    ("started", "line"), [("", "Device: cpu."), (None, "Device: cpu. Started: 2026-11-23 01:00 UTC.")]
)
def test_what_is_not_known_of_a_run_is_left_out(one, conftest_parts, started, line):
    run = conftest_parts.make_run("gradient_flow")
    run |= {} if started is None else {"started": started}
    text = (one(run=run) / "report/report.md").read_text("utf-8")
    assert line in text.splitlines()
    assert "| commit |" not in text
    assert "| cores | 2 |" in text


def test_nothing_stored_still_makes_a_report(conftest_parts, tmp_path):
    assert "Nothing is stored yet." in render(conftest_parts.FakeStored(tmp_path, {}), {}).read_text("utf-8")


def test_failures_are_grouped_and_counted(one, conftest_parts):
    kinds = 12
    failed = pd.concat(
        [conftest_parts.rows(kinds).query("status == 'ok'").drop_duplicates("case").assign(
            case=f"copy={copy}," + pd.Series([f"seed={seed}" for seed in range(kinds)]).to_numpy(), status="timeout",
            message=[f"stopped in place {chr(97 + seed)}" for seed in range(kinds)], metric="", value=np.nan,
        ) for copy in range(5)]
    )  # fmt: skip
    text = (one(pd.concat([conftest_parts.rows(3, 2), failed])) / "report" / "gradient_flow.md").read_text("utf-8")
    assert "63 of 66 cases failed." in text
    assert "| timeout | stopped in place a | 5 | copy=0,seed=0; copy=1,seed=0; copy=2,seed=0; … |" in text
    assert "… and 4 other kinds of failure." in text


def test_failures_that_differ_in_numbers_alone_are_one(one, conftest_parts):
    failed = conftest_parts.rows().query("status != 'ok'")
    failed = failed.assign(message=[f"RuntimeError: shape ({i}, 3) does not fit" for i in range(len(failed))])
    text = (one(pd.concat([conftest_parts.rows(3, 2), failed])) / "report" / "gradient_flow.md").read_text("utf-8")
    told = "RuntimeError: shape (0, 3) does not fit (and 3 more that differ in numbers alone)"
    assert text.count(told) == 1


def test_an_earlier_report_is_replaced_as_a_whole(stored, study):
    report = stored.directory / "report"
    report.mkdir()
    (report / "stale.md").write_text("old")
    (report / "findings.json").write_text("{}")
    (stored.directory / ".depthgauge.report.new").mkdir()
    (stored.directory / ".depthgauge.report.new" / "half.md").write_text("from a rendering that was killed")
    render(stored, {"gradient_flow": study})
    assert not (report / "stale.md").exists()
    assert sorted(path.name for path in stored.directory.iterdir()) == ["report"]


def test_a_rendering_that_fails_leaves_the_earlier_report(stored, study, monkeypatch):
    render(stored, {"gradient_flow": study})
    before = tree(stored.directory)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("depthgauge.reports.pages.index_page", full)
    with pytest.raises(OSError, match="No space left"):
        render(stored, {"gradient_flow": study})
    assert tree(stored.directory) == before
    assert sorted(path.name for path in stored.directory.iterdir()) == ["report"]


def test_the_guide_to_a_report_reads_one(stored, study, monkeypatch, capsys):
    render(stored, {"gradient_flow": study})
    guide = (Path(__file__).parents[2] / "docs" / "reading-a-report.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(stored.directory)
    exec(compile(example, "reading-a-report.md", "exec"), {})
    assert capsys.readouterr().out == "gradient_flow N01 4.065611775352152e+17 None\n"
    keys = findings_of(stored.directory)["studies"]["gradient_flow"]
    assert all(f"`{key}`" in guide for key in (*keys, *keys["verdicts"][0]))
    assert all(f"{mark} {word}" in guide for mark, word in pages.MARKS.values())


def test_the_callers_matplotlib_is_left_as_it_was(stored, study):
    with mpl.rc_context({"lines.linewidth": 7}):
        mine = plt.figure()
        before, backend = dict(mpl.rcParams), mpl.get_backend()
        render(stored, {"gradient_flow": study})
        assert dict(mpl.rcParams) == before
        assert mpl.get_backend() == backend
        assert plt.get_fignums() == [mine.number]
        plt.close(mine)


def test_drawing_opens_no_window(conftest_parts):
    script = textwrap.dedent("""
        import matplotlib
        from depthgauge.reports import style
        matplotlib.use("template")
        from matplotlib import pyplot
        pyplot.switch_backend("template")
        with style.drawing():
            assert matplotlib.get_backend().lower() == "agg"
            assert type(pyplot.figure().canvas).__name__ == "FigureCanvasAgg"
            pyplot.show()
        assert matplotlib.get_backend() == "template"
        assert type(pyplot.figure().canvas).__module__.endswith("template")
    """)
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_seaborn_draws_in_the_house_style():
    import seaborn as sns

    frame = pd.DataFrame({"x": [1, 2, 1, 2], "y": [1.0, 2.0, 2.0, 1.0], "kind": ["a", "a", "b", "b"]})
    with style.drawing():
        axes = sns.lineplot(frame, x="x", y="y", hue="kind")
        assert [mpl.colors.to_hex(line.get_color()).upper() for line in axes.lines[:2]] == list(style.PALETTE[:2])
        assert style.png(axes.figure).startswith(b"\x89PNG")
        grid = sns.relplot(frame, x="x", y="y", col="kind")
        assert style.png(grid.figure).startswith(b"\x89PNG")


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009),
# table 1 at severity 1: what linear RGB looks like without red or without green cones
SIGHT = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    relative = to_xyz @ np.clip(rgb, 0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_the_cycle_stay_apart_for_every_reader(sight):
    seen = [lab(np.asarray(SIGHT[sight]) @ linear(colour)) for colour in style.PALETTE]
    nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
    assert nearest > 4 * 2.3  # 2.3 is the just noticeable difference in CIELAB (Mahy and others, 1994)


@pytest.mark.slow
def test_a_million_rows_take_seconds(one, conftest_parts):
    frame = conftest_parts.rows(1000, 1000)
    assert len(frame) > 1_000_000
    directory = one(frame, analyse=lambda rows: Findings((), {"all": rows[["case", "value"]]}, shown=("all",)))
    assert findings_of(directory)["studies"]["gradient_flow"]["cases"] == 1004
    assert (directory / "report" / "index.html").stat().st_size < 1e6
