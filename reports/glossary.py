"""The terms that a report explains where they first stand, and the symbols that it typesets.

    scope = Glossary().scope()
    scope("Holm over 12 comparisons at sigma_w 1.4")   # markup: Holm has a tooltip, sigma_w is σ with index w

A term is explained once in a scope.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from depthgauge.reports.escaping import clean, slug


@dataclass(frozen=True)
class Term:
    """A term of the field, as a report explains it.

    Attributes:
        name: as it stands in the glossary.
        meaning: in one or two short sentences.
        forms: further spellings, each taken literally.
    """

    name: str
    meaning: str
    forms: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The place of a page that explains it."""
        return f"term-{slug(self.name)}"


TERMS = (
    Term("sigma_w", "Weight scale: weights are drawn with the standard deviation sigma_w / √(fan-in).", ("σ_w",)),
    Term("sigma_b", "Bias scale: biases are drawn with this standard deviation.", ("σ_b",)),
    Term("gain", "Factor on a weight scale that makes up for what an activation takes from the signal."),
    Term("fan-in", "Number of inputs of a unit.", ("fan_in",)),
    Term(
        "critical",
        "The weight scale at which a gradient neither grows nor shrinks from layer to layer, on average (chi_1 = 1).",
        ("criticality", "edge of chaos"),
    ),
    Term("chi_1", "Factor by which the squared gradient changes from one layer to the next, in a wide net.", ("χ_1",)),
    Term("depth scale", "Number of layers over which a signal's memory of its input falls to 1/e.", ("xi_c", "ξ_c")),
    Term("LSUV", "Layer-sequential unit variance: each layer's weights are scaled until its outputs have variance 1."),
    Term("Xavier", "Initialization with variance 2 / (fan-in + fan-out).", ("Glorot",)),
    Term("He", "Initialization with variance 2 / fan-in, made for ReLU.", ("Kaiming",)),
    Term("orthogonal", "Initialization by random rotations: lengths are kept exactly, in a linear layer."),
    Term("Holm", "A correction for many comparisons: the chance of a single false one stays below the stated level."),
    Term(
        "Bonferroni",
        "A correction for many comparisons: every interval is widened, so that all hold at once at the stated level.",
    ),
    Term("censored", "A run that never got there within its steps: counted as later than that, not left out."),
    Term("Wilson", "An interval for a share, right for few runs and for shares near 0 and 1."),
    Term("BCa bootstrap", "An interval from resampling the runs, corrected for bias and skew.", ("bootstrap",)),
    Term("A/A", "The same thing timed against itself: what differs there is the noise of the clock."),
    Term("subnormal", "A number below a format's normal range, held with fewer digits.", ("subnormals",)),
    Term("underflow", "A number too small for its format becomes 0.", ("underflows",)),
    Term("overflow", "A number too large for its format becomes infinite.", ("overflows",)),
    Term("loss scale", "Factor on the loss that lifts gradients into a format's range; it is divided out afterwards."),
    Term("bf16", "16-bit format with float32's range and 8 bits of precision.", ("bfloat16",)),
    Term("fp16", "16-bit format with 11 bits of precision; below 6 × 10⁻⁸ it has 0.", ("float16",)),
    Term("fp8", "8-bit formats: e4m3 (3 digits after the point in base 2) and e5m2 (2).", ("e4m3", "e5m2")),
    Term("dead unit", "A unit that is 0 for every example: no gradient passes it.", ("dead units",)),
    Term("false alarm", "A fault that is reported of a sound training.", ("false alarms",)),
    Term(
        "saturated unit", "A unit on the flat part of its activation: hardly any gradient passes.", ("saturated units",)
    ),
    Term("noise scale", "The batch size at which a gradient's noise is as large as the gradient itself."),
    Term("critical batch size", "The batch size beyond which more examples a step save few steps."),
    Term("sharpness", "The largest curvature of the loss: the largest eigenvalue of its Hessian."),
    Term("all-reduce", "Sums a tensor over all processes and gives each the sum."),
    Term("bucket", "Gradients that travel between processes as one message.", ("buckets",)),
    Term("roofline", "The bound that a machine's arithmetic and its memory put on an operation's speed."),
    Term("ln a layer", "Natural logarithm of the factor from one layer to the next: −0.01 is a loss of 1 %."),
    Term("mean-field theory", "What infinitely wide networks do: the limit in which signals can be computed exactly."),
    Term("Lyapunov exponent", "Growth a factor, as ln, of a long product of random matrices."),
    Term("ranks", "Processes that train one model together, usually one a device."),
    Term(
        "DDP",
        "PyTorch's DistributedDataParallel: every rank has all weights, and gradients are averaged over ranks.",
        ("DistributedDataParallel",),
    ),
    Term("FSDP2", "PyTorch's sharding: each rank holds a share of the weights, and fetches the rest when it needs it."),
    Term(
        "microbatch", "A part of a batch that goes through a pipeline, or is accumulated, by itself.", ("microbatches",)
    ),
    Term(
        "GradScaler", "PyTorch's automatic loss scale: it skips a step whose gradients overflow, and halves the scale."
    ),
    Term("autocast", "PyTorch's mixed precision: matrix products in 16 bits, weights and sums in float32."),
    Term("master weights", "A float32 copy of 16-bit weights, to which updates are added."),
    Term("Kahan summation", "Adds what rounding lost to the next number, so that small updates arrive.", ("kahan",)),
    Term("stochastic rounding", "Rounds up or down at random, so that the mean is right."),
    Term("ulp", "One unit in the last place: the smallest step from one number of a format to the next."),
    Term("warm-up", "A learning rate that rises from near 0 in the first steps."),
    Term("range test", "Raises the learning rate step by step in one run, and reads a good one off the losses."),
    Term(
        "maximal update parametrization",
        "Scales of weights and learning rates by width at which every layer keeps learning as a network grows.",
        ("mu parametrization",),
    ),
    Term(
        "noisy quadratic", "A quadratic loss with noise in its gradients: the simplest training that theory can follow."
    ),
    Term("diverged", "A training whose loss became infinite, not a number, or far larger than it began."),
)

_SYMBOLS = {
    "sigma_w": ("σ", "w"), "σ_w": ("σ", "w"), "sigma_b": ("σ", "b"), "σ_b": ("σ", "b"), "chi_1": ("χ", "1"),
    "χ_1": ("χ", "1"), "xi_c": ("ξ", "c"), "ξ_c": ("ξ", "c"), "xi_q": ("ξ", "q"), "ξ_q": ("ξ", "q"),
    "q_star": ("q", "*"), "c_star": ("c", "*"),
}  # fmt: skip

_TERM_OF = {form.lower(): term for term in TERMS for form in (term.name, *term.forms)}


def _either(words: list[str]) -> str:
    """A pattern of whole words, the longest first."""
    return r"(?<!\w)(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + r")(?!\w)"


_POWER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?e[+-]?\d+(?!\w)")  # 4.1e+17
# a name of a person begins with a capital: "he" is none
_EXACT = [form for term in TERMS for form in (term.name, *term.forms) if form[:1].isupper()]
_LOOSE = [form for term in TERMS for form in (term.name, *term.forms) if not form[:1].isupper()]
_WORDS = re.compile(rf"{_either([*_EXACT, *_SYMBOLS])}|(?i:{_either(_LOOSE)})|(?<=[\w)])\^-?[\d.]*\w|{_POWER.pattern}")


def typeset(text: str) -> str:
    """`text` with its symbols as letters of Greek: where there is no markup, as in a tooltip."""
    return re.sub(_either(list(_SYMBOLS)), lambda match: "_".join(_SYMBOLS[match[0]]), text)


def marked(text: str) -> Markup:
    """Escape `text` and typeset its symbols, explaining none: for a label."""
    return _spelled(text, _symbol)


def _spelled(text: str, word: Callable[[str], Markup]) -> Markup:
    """Escape `text`, but for its terms and symbols, of which `word` makes markup."""
    text, parts, end = clean(text), [], 0
    for match in _WORDS.finditer(text):
        parts += [escape(text[end : match.start()]), word(match[0])]
        end = match.end()
    return Markup("").join((*parts, escape(text[end:])))


def _symbol(text: str) -> Markup:
    """A symbol in italics, its index below; a power raised; any other text as it is."""
    if text.startswith("^"):
        return Markup("<sup>{}</sup>").format(text[1:].replace("-", "−"))
    if _POWER.fullmatch(text):
        factor, _, power = text.partition("e")
        lead = "" if factor == "1" else f"{factor} × "
        return Markup("{}10<sup>{}</sup>").format(lead, str(int(power)).replace("-", "−"))
    if text not in _SYMBOLS:
        return escape(text)
    letter, index = _SYMBOLS[text]
    return Markup("<var>{}<sub>{}</sub></var>").format(letter, index)


@dataclass
class Scope:
    """A part of a page, in which a term is explained once.

    Calling it makes markup of text.
    """

    used: set[str]
    here: set[str] = field(default_factory=set)

    def __call__(self, text: str) -> Markup:
        """Escape `text`, typeset its symbols and explain the terms that are new here."""
        return _spelled(text, self._word)

    def _word(self, word: str) -> Markup:
        term = _TERM_OF.get(word.lower())
        if term is None or term.name in self.here:
            return _symbol(word)
        self.here.add(term.name)
        self.used.add(term.name)
        link = Markup('<a class="term" href="#{}"><abbr title="{}">{}</abbr></a>')
        return link.format(term.anchor, typeset(term.meaning), _symbol(word))


@dataclass
class Glossary:
    """The terms that a page has used."""

    used: set[str] = field(default_factory=set)

    def scope(self) -> Scope:
        """Begin a part of the page in which terms are explained anew."""
        return Scope(self.used)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms that were explained, sorted by name."""
        return tuple(sorted((term for term in TERMS if term.name in self.used), key=lambda term: term.name.lower()))
