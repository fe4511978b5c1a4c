"""Escaping of foreign text: a user's, a model's or an exception's words never become markup, a formula or a path."""

from __future__ import annotations

import functools
import hashlib
import re
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
# controls, bidirectional overrides, line separators, lone surrogates: invisible, misleading or not encodable
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SPECIAL = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])|<|&(?=#?\w+;)")
_ENTITY = {"<": "&lt;", "&": "&amp;"}
_OPENING = re.compile(r"^(?:[-+>=:]|(\d{1,9})(?=[.)](?:\s|$)))")


class Markdown(str):
    """Text that is markdown already and is not escaped again."""

    __slots__ = ()


def clean(text: str, *, newlines: bool = False) -> str:
    r"""`text` without terminal colours and with every other control character spelled out (`\x07`).

    It is one line, unless `newlines` are kept.
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    if not newlines:
        text = " ".join(re.split(r"[\n\t\r\u2028\u2029]+", text)).strip()
    return _UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)


def shorten(text: str, most: int = 300) -> str:
    """The beginning of `text`, at most `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def markdown(text: str) -> Markdown:
    """Plain text as one line of markdown that shows exactly that text, in a paragraph, a heading or a table cell."""
    if isinstance(text, Markdown):
        return text
    text = _SPECIAL.sub(lambda match: _ENTITY.get(match[0], "\\" + match[0]), clean(text))
    return Markdown(_OPENING.sub(lambda match: f"{match[1]}\\" if match[1] else f"\\{match[0]}", text))


def fenced(text: str) -> Markdown:
    """`text` as a fenced block, its fence longer than any run of backticks inside."""
    text = clean(text, newlines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{fence}text\n{text}\n{fence}")


def attribute(text: str) -> Markdown:
    """Plain text as the value of an HTML attribute that stands in markdown, in a table or not."""
    return Markdown(re.sub(r"[&<>\"'`|\\\[\]*_~$]", lambda match: f"&#{ord(match[0])};", clean(text)))


def code(text: str) -> Markdown:
    """`text` as a code span, or as plain text where it holds what would end one."""
    text = clean(text)
    return markdown(text) if re.search(r"[`|\\]", text) or not text else Markdown(f"`{text}`")


def slug(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """`name` as a file name or an anchor: itself where it is a plain word, else its letters and a digest.

    Different names get different slugs; none is in `reserved`.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80]
    if plain == name and name and name not in reserved:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def cell(text: str) -> str:
    """`text` as a CSV cell that no spreadsheet takes for a formula.

    Text that begins with `=`, `+`, `-`, `@` and is no number gets an apostrophe in front, which a spreadsheet hides.
    """
    text = "\n".join(clean(line) for line in text.splitlines())
    if not text.lstrip().startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


@functools.cache
def _parser() -> MarkdownIt:
    """The parser of authors' text."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.validateLink = _any_link  # type: ignore[method-assign] # sees every link, to judge it itself
    return parser


class Prose:
    """Markdown by a study's author, as it stands in a page.

    Raw HTML, pictures, links that are neither web addresses nor anchors, and a block that is never closed make it
    plain text: a page must open without a network, run nothing and stay whole. Headings are lowered below the page's.

    Attributes:
        plain: whether the text had to be taken as plain text.
    """

    def __init__(self, source: str) -> None:
        self._source = clean(source, newlines=True).strip()
        parser = _parser()  # not kept: a section goes from one process to another, and its rules cannot
        self._tokens = parser.parse(self._source)
        followed = parser.parse(f"{self._source}\n\nend")
        closed = [token.content for token in followed[-3:]] == ["", "end", ""] and followed[-3].level == 0
        self.plain = not closed or any(_unsafe(token) for token in _flat(self._tokens))
        for token in self._tokens:
            if token.type in {"heading_open", "heading_close"}:
                token.tag = f"h{min(int(token.tag[1]) + 3, 6)}"

    def markdown(self) -> Markdown:
        """The text as markdown."""
        if self.plain:
            return Markdown("\n\n".join(map(markdown, self._paragraphs())))
        lines = self._source.split("\n")
        for token in self._tokens:
            if token.type == "heading_open" and token.markup.startswith("#") and token.map:
                marks = "#" * int(token.tag[1])
                lines[token.map[0]] = re.sub("#{1,6}", marks, lines[token.map[0]], count=1)
        return Markdown("\n".join(lines))

    def html(self) -> Markup:
        """The text as HTML."""
        if self.plain:
            return Markup("\n").join(Markup("<p>{}</p>").format(part) for part in self._paragraphs())
        parser = _parser()
        return Markup(parser.renderer.render(self._tokens, parser.options, {}))  # noqa: S704 -- by markdown-it, no raw HTML in it

    def _paragraphs(self) -> list[str]:
        return [clean(part) for part in re.split(r"\n{2,}", self._source)]


def _any_link(url: str) -> bool:  # noqa: ARG001 -- the parser's interface
    return True


def _flat(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in (token, *_flat(token.children or []))]


def _unsafe(token: Token) -> bool:
    if token.type in {"html_inline", "html_block", "image"}:
        return True
    if token.type != "link_open":
        return False
    address = unquote(str(token.attrGet("href") or ""))
    try:
        scheme = urlsplit(re.sub(r"[\s\x00-\x20]", "", address)).scheme
    except ValueError:
        return True
    return scheme not in {"http", "https"} and not address.startswith("#")
