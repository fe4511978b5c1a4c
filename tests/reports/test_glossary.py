"""Terms explained where they first stand, and symbols typeset."""

import re

import pytest

from depthgauge.reports.glossary import TERMS, Glossary, marked, typeset


def test_a_term_is_explained_once_in_each_part_of_a_page():
    glossary = Glossary()
    first, second = glossary.scope(), glossary.scope()
    text = "Holm over 12; Holm again"
    assert str(first(text)).count("<abbr") == 1
    assert "<abbr" not in first(text)
    assert re.search(
        r'<a class="term" href="#term-Holm"><abbr title="A correction [^"]+">Holm</abbr></a>', second(text)
    )
    assert [term.name for term in glossary.terms] == ["Holm"]


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("he says so", ""), ("He's weights", "He"), ("Criticality", "Criticality"), ("Gain", "Gain"),
        ("uncritical", ""), ("critical_batch", ""), ("below the critical batch size", "critical batch size"),
    ],
)  # fmt: skip
def test_words_are_whole_and_a_name_has_its_capital(text, marked):
    assert "".join(re.findall(r'<abbr title="[^"]*">([^<]*)', Glossary().scope()(text))) == marked


def test_symbols_are_typeset_and_text_is_escaped():
    say = Glossary().scope()
    say("sigma_w")
    assert say("at sigma_w < 1.4 & xi_q") == ("at <var>σ<sub>w</sub></var> &lt; 1.4 &amp; <var>ξ<sub>q</sub></var>")
    assert say("sigma_w_0 stays") == "sigma_w_0 stays"
    assert say("2^-3 to 1.5^100, ^ alone") == "2<sup>−3</sup> to 1.5<sup>100</sup>, ^ alone"
    assert say("is 4.1e+17, not 1e-05: float8_e4m3fn") == "is 4.1 × 10<sup>17</sup>, not 10<sup>−5</sup>: float8_e4m3fn"
    assert marked("at chi_1 = 1 on 2 ranks") == "at <var>χ<sub>1</sub></var> = 1 on 2 ranks"
    assert typeset("sigma_w up to chi_1") == "σ_w up to χ_1"


def test_no_two_terms_share_a_place_or_a_spelling():
    spelled = [form.lower() for term in TERMS for form in (term.name, *term.forms)]
    assert len(spelled) == len(set(spelled))
    assert len({term.anchor for term in TERMS}) == len(TERMS)
    assert all(term.meaning.endswith((".", ").")) for term in TERMS)
