import csv
import html
import io
import pickle
import re

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from depthgauge.reports.escaping import Prose, attribute, cell, clean, code, fenced, markdown, slug
from depthgauge.reports.tables import Table

HOSTILE = (
    "<script>alert(1)</script>",
    "a | b",
    "`code` ``` ~~~",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "line\nbreak\n\n# heading",
    "\x1b[31mred\x1b[0m \x07",
    "&lt;b&gt; &amp; &#60;",
    "*bold* _under_ __both__ ~~gone~~",
    "1. list",
    "- list",
    "> quote",
    "---",
    "{{ 7 * 7 }} {% raw %}",
    "$x$",
    "\\| \\",
    "\u202egnp.exe",
    "\udcff",
    "<!-- -->",
    "<http://example.org>",
    "=1+1",
)

gfm = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown(source: str) -> str:
    """The text that a reader of this markdown sees, where it is one paragraph of nothing but text."""
    tokens = gfm.parse(source)
    assert [token.type for token in tokens] in (["paragraph_open", "inline", "paragraph_close"], [])
    inner = tokens[1].children if tokens else []
    assert {token.type for token in inner} <= {"text", "text_special"}
    return "".join(token.content for token in inner)


def examples(test):
    for text in HOSTILE:
        test = example(text)(test)
    return test


@given(st.text())
@examples
def test_markdown_shows_the_very_text(text):
    assert shown(markdown(text)) == clean(text)


@given(st.text())
@examples
def test_markdown_stays_in_its_table_cell(text):
    table = gfm.parse(f"| a | b |\n| --- | --- |\n| {markdown(text)} | x |\n")
    cells = [token.content for token in table if token.type == "inline"]
    assert len(cells) == 4
    assert cells[3] == "x"


@given(st.text())
@examples
def test_markdown_stays_in_its_heading_and_in_its_link(text):
    heading, inline, *_ = gfm.parse(f"## {markdown(text)}")
    assert heading.tag == "h2"
    assert "".join(token.content for token in inline.children) == clean(text)
    link = gfm.parseInline(f"[{markdown(text)}](page.md)")[0].children
    assert [token.attrGet("href") for token in link if token.type == "link_open"] == ["page.md"]


@given(st.text())
@examples
def test_an_attribute_in_markdown_holds_the_very_text(text):
    tokens = gfm.parse(f'| a | b |\n| --- | --- |\n| `x` <img alt="{attribute(text)}"> | `x` |\n')
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    kinds = [child.type for child in cells[2].children]
    assert kinds == ["code_inline", "text", "html_inline"]
    found = re.fullmatch(r'<img alt="([^"]*)">', cells[2].children[2].content)
    assert found
    assert html.unescape(found[1]) == clean(text)


@given(st.text())
@examples
def test_code_shows_the_very_text(text):
    cells = [token for token in gfm.parse(f"| a |\n| --- |\n| {code(text)} |\n") if token.type == "inline"]
    assert len(cells) == 2
    assert "".join(child.content for child in cells[1].children) == clean(text)


@given(st.text())
@examples
def test_clean_text_is_one_visible_line_and_can_be_written(text):
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", clean(text))
    clean(text).encode()
    assert clean(clean(text)) == clean(text)


@given(st.text())
@examples
def test_fenced_text_cannot_leave_its_fence(text):
    tokens = gfm.parse(f"{fenced(text)}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == clean(text, newlines=True) + "\n"


@given(st.text(), st.text())
def test_slugs_are_plain_file_names_and_differ(one, other):
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,90}", slug(one))
    assert slug(one)
    assert (slug(one) == slug(other)) == (one == other)


def test_a_reserved_name_gets_another_slug():
    assert slug("gradient_flow") == "gradient_flow"
    assert slug("report", frozenset({"report"})) not in {"report", slug("report-")}
    assert "/" not in slug("../../etc/passwd")


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\x1b[1m=1"])
def test_no_csv_cell_is_a_formula(text):
    assert cell(text)[0] == "'"


@pytest.mark.parametrize("text", ["tanh", "-1.5", "+3", "-inf", "1=1", ""])
def test_other_csv_cells_stay_as_they_are(text):
    assert cell(text) == text


def test_a_table_reads_back_with_every_digit():
    frame = pd.DataFrame({
        "value": [0.1 + 0.2, float("nan"), float("inf"), -5e-324], "n": [1, 2, 3, 2**53 + 1],
        "name": ["a,b", 'say "x"', "two\nlines", None],
    })  # fmt: skip
    table = Table.of("t", "s.t", frame, shown=True)
    back = pd.read_csv(io.BytesIO(table.csv))
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert table.rows[1] == ("NaN", "2", 'say "x"')


def test_a_named_index_belongs_to_the_table():
    frame = pd.DataFrame(
        {"value": [1.0]}, index=pd.MultiIndex.from_tuples([("tanh", 3)], names=["activation", "depth"])
    )
    assert list(csv.reader(io.StringIO(Table.of("t", "s", frame, shown=False).csv.decode()))) == [
        ["activation", "depth", "value"],
        ["tanh", "3", "1.0"],
    ]
    summary = pd.DataFrame({"g": ["a", "a"], "x": [1.0, 2.0]}).groupby("g").agg({"x": ["mean", "size"]})
    assert Table.of("t", "s", summary, shown=False).csv == b"g,x mean,x size\na,1.5,2\n"


def test_an_empty_table_and_a_long_one():
    assert Table.of("t", "s", pd.DataFrame(), shown=True).rows == ()
    long = Table.of("t", "s", pd.DataFrame({"x": range(1000)}), shown=True)
    assert len(long.rows) + long.left_out == 1000
    assert long.csv.count(b"\n") == 1001


@pytest.mark.parametrize(
    "source",
    [
        "<script>alert(1)</script>",
        "text <img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt&colon;alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x]: data:text/html,x\n\n[x]",
        "<javascript:alert(1)>",
        "[x](//example.org)",
        "[x](file:///etc/passwd)",
        "![x](http://example.org/x.png)",
        "```\nnever closed",
        "<!-- never closed",
    ],
)
def test_unsafe_prose_becomes_plain_text(source):
    prose = Prose(source)
    assert prose.plain
    for text in (prose.html(), MarkdownIt("commonmark").render(prose.markdown())):
        assert not re.search(r"<(?!/?p>)", text)


def test_prose_keeps_its_markdown_and_lowers_its_headings():
    prose = Prose("# One\n\n*two* [three](https://example.org) `<b>`\n\n- # four\n\n| a |\n| - |\n| b |")
    assert not prose.plain
    assert prose.markdown().startswith("#### One\n\n*two* [three](https://example.org) `<b>`\n\n- #### four")
    assert "<h4>One</h4>" in prose.html()
    assert "<code>&lt;b&gt;</code>" in prose.html()
    assert "<td>b</td>" in prose.html()
    other = pickle.loads(pickle.dumps(prose))  # as where a study is examined in a process of its own
    assert (other.html(), other.markdown()) == (prose.html(), prose.markdown())


@given(st.text(alphabet="<>a!&;#[]()`:/|-\n *=\"'\\~"))
def test_prose_never_yields_foreign_markup(source):
    tags = "p em strong s code pre ul ol li blockquote hr br a h[4-6] table thead tbody tr t[hd]".replace(" ", "|")
    allowed = rf"</?(?:{tags})(?: (?:href|title|style|start|class)=\"[^\"<>]*\")*(?: /)?>"
    assert "<" not in re.sub(allowed, "", Prose(source).html())
    tokens = gfm.parse(Prose(source).markdown() + "\n\nend")
    assert [token.content for token in tokens[-3:]] == ["", "end", ""]
    assert tokens[-3].level == 0
    assert not any("html" in inner.type for token in tokens for inner in (token, *(token.children or [])))
