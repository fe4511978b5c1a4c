from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from depthgauge.study import RESERVED, Case, Chunk, Context, Grid, Rows, Study, StudyError, spell
from depthgauge.verdict import Findings

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
# NaN too: cases are one where they are spelled alike.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.floats(), st.text(max_size=8),
    st.sampled_from(["", "1", "1.0", "None", "True", "nan", "-inf", "1e5", "1_0", " 1 ", "''", "'", "'1'", "%31"]),
)  # fmt: skip
PARAMS = st.dictionaries(NAMES, VALUES, max_size=4)


def run(cases, context):
    return ()


def analyse(frame):
    return Findings(())


def plot(findings):
    return ()


def study(*grids: Grid, name: str = "some", **more) -> Study:
    return Study(name, "Why?", {"quick": grids}, run, analyse, plot, **more)


def ids(chunks) -> list[tuple[str, ...]]:
    return [tuple(case.id for case in chunk.cases) for chunk in chunks]


# -- cases -------------------------------------------------------------------------------------------------------------


def test_an_id_is_spelled_from_parameters_in_alphabetical_order():
    assert Case.of({"seed": 3, "activation": "tanh", "depth": 32}).id == "activation=tanh,depth=32,seed=3"
    assert Case.of({}).id == ""


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (3, "3"),
        (3.0, "3.0"),
        (0.1, "0.1"),
        (2**0.5, "1.4142135623730951"),
        (1e-300, "1e-300"),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (True, "True"),
        (None, "None"),
        ("tanh", "tanh"),
        ("", "''"),
        ("1", "'1'"),
        ("1.0", "'1.0'"),
        ("nan", "'nan'"),
        ("None", "'None'"),
        ("none", "none"),
        ("'1'", "''1''"),
        ("a,b=c", "a%2Cb%3Dc"),
        ("50%", "50%25"),
        ("two words", "two words"),
        ("a\nb", "a%0Ab"),
        ("my_package.models:build", "my_package.models:build"),
    ],
)
def test_spelling(value, spelled):
    assert spell(value) == spelled


@given(st.floats(allow_nan=False))
def test_floats_are_spelled_exactly(value):
    back = float(spell(value))
    assert (back, math.copysign(1, back)) == (value, math.copysign(1, value))


# Few names and the characters that separate: what could be mistaken is common among these.
NEAR = st.dictionaries(
    st.sampled_from(["a", "b"]), st.one_of(st.integers(0, 1), st.none(), st.text("ab=,%1'", max_size=5)), max_size=2
)


@given(st.one_of(PARAMS, NEAR), NEAR)
@example({"a": "1,b=1"}, {"a": "1", "b": 1})
@example({"a": "%2C"}, {"a": ","})
@example({"a": 1}, {"a": "1"})
@example({"a": 1}, {"a": 1.0})
@example({"a": 1}, {"a": True})
@example({"a": 0.0}, {"a": -0.0})
@example({"a": None}, {"a": "None"})
@example({"a": ""}, {"a": "''"})
def test_different_parameters_have_different_ids(a, b):
    assert (Case.of(a).id == Case.of(b).id) == (exactly(a) == exactly(b))
    assert (Case.of(a) == Case.of(b)) == (exactly(a) == exactly(b))


def exactly(params):
    """What tells values apart: their type, and the sign of a zero."""
    return {name: (type(value), repr(value)) for name, value in params.items()}


@given(st.one_of(PARAMS, NEAR))
def test_an_id_reads_back_as_its_case(params):
    back = Case.read(Case.of(params).id)
    assert exactly(dict(back.params)) == exactly(params)


EQUAL = {
    "int and bool": (1, True),
    "int and float": (1, 1.0),
    "zeros": (0.0, -0.0),
    "text and number": ("1", 1),
    "text and None": (None, "None"),
    "all": (1, 1.0, True, "1", "1.0", "True"),
}


@pytest.mark.parametrize("values", EQUAL.values(), ids=EQUAL)
@pytest.mark.parametrize("together", [("seed",), ("x", "seed")])
def test_values_that_python_calls_equal_are_cases_of_their_own(values, together):
    chunks = study(Grid({"x": values}, seeds=3, together=together, chunk=64)).chunks("quick")
    assert len(chunks) == (1 if "x" in together else len(values))
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    stored = [case["x"] for chunk in chunks for case in chunk.cases if case["seed"] == 0]
    assert [exactly({"x": value}) for value in stored] == [exactly({"x": value}) for value in values]
    assert len({case for chunk in chunks for case in chunk.cases}) == 3 * len(values)


@given(PARAMS.filter(bool), st.randoms())
def test_an_id_does_not_depend_on_the_order_of_parameters(params, random):
    items = list(params.items())
    random.shuffle(items)
    assert Case.of(dict(items)) == Case.of(params)
    assert Case.of(dict(items)).id == Case.of(params).id


@given(PARAMS)
def test_ids_stand_on_one_line_and_cases_pickle(params):
    case = Case.of(params)
    assert len(case.id.splitlines()) <= 1
    assert pickle.loads(pickle.dumps(case)) == case


def test_parameters_are_read_as_what_they_are():
    case = Case.of({"width": 8, "sigma_w": 1.5, "activation": "relu", "bias": True, "none": None})
    assert (case["width"], case.get("absent", 3), case.get("none", 3)) == (8, 3, None)
    assert "width" in case
    assert "absent" not in case
    assert case.integer("width") == 8
    assert case.text("activation") == "relu"
    assert isinstance(case.number("width"), float)
    for read, name in (
        (case.integer, "sigma_w"), (case.integer, "bias"), (case.number, "bias"), (case.number, "activation"),
        (case.text, "width"), (case.text, "none"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"parameter '{name}' is .*expected"):
            read(name)
    with pytest.raises(KeyError, match="no parameter 'depth'; it has activation, bias, none, sigma_w, width"):
        case["depth"]


def test_seeds_depend_on_the_named_parameters_alone():
    a = Case.of({"seed": 1, "sigma_w": 1.0, "depth": 3})
    b = Case.of({"seed": 1, "sigma_w": 2.0, "depth": 3})
    assert a.random_seed("seed", "depth") == b.random_seed("depth", "seed")
    assert a.random_seed() != b.random_seed()
    assert a.random_seed() == a.random_seed("seed", "sigma_w", "depth")
    with pytest.raises(KeyError, match="no parameter 'width'"):
        a.random_seed("width")


def test_another_series_has_other_draws_whatever_is_named():
    cases = [Case.of({"seed": 1, "depth": 3, **own}) for own in ({}, {"series": 1}, {"series": 2})]
    assert len({case.random_seed("seed") for case in cases}) == 3
    assert len({case.random_seed() for case in cases}) == 3
    assert cases[1].random_seed("seed") == Case.of({"seed": 1, "depth": 9, "series": 1}).random_seed("seed")


@given(st.lists(st.integers(0, 10**9), unique=True, min_size=2, max_size=50))
def test_seeds_fit_a_signed_word_and_differ(seeds):
    drawn = [Case.of({"seed": seed}).random_seed() for seed in seeds]
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert len(set(drawn)) == len(drawn)


def test_a_seed_never_changes_between_versions():
    """2^63 seeds are drawn by SHA-256 of the id: worked out here by hand from its first eight bytes."""
    # sha256("depth=3") starts with these bytes, as `printf 'depth=3' | sha256sum` says
    assert Case.of({"depth": 3}).random_seed() == int("b12c220ff10e861a", 16) >> 1


def test_rows_carry_their_case():
    case = Case.of({"seed": 0})
    assert case.rows("loss", [1.0, math.nan], step=[0, 1]) == Rows(case, "loss", [1.0, math.nan], step=[0, 1])


# -- grids and chunks --------------------------------------------------------------------------------------------------


def test_a_grid_is_a_full_factorial_with_seeds_slowest():
    grid = Grid({"a": (1, 2), "b": ("x", "y")}, fixed={"c": 0.5}, seeds=2)
    assert [case.id for case in grid.cases()] == [
        f"a={a},b={b},c=0.5,seed={seed}" for seed in range(2) for a in (1, 2) for b in ("x", "y")
    ]
    assert "seed" not in next(iter(Grid({"a": (1,)}).cases()))


def test_chunks_hold_what_may_run_together():
    grid = Grid({"a": (1, 2), "b": (1, 2, 3)}, seeds=2, together=("b", "seed"), chunk=4)
    assert ids(grid.chunks("s")) == [
        ("a=1,b=1,seed=0", "a=1,b=2,seed=0", "a=1,b=3,seed=0", "a=1,b=1,seed=1"),
        ("a=1,b=2,seed=1", "a=1,b=3,seed=1"),
        ("a=2,b=1,seed=0", "a=2,b=2,seed=0", "a=2,b=3,seed=0", "a=2,b=1,seed=1"),
        ("a=2,b=2,seed=1", "a=2,b=3,seed=1"),
    ]
    assert [chunk.shared for chunk in grid.chunks("s")] == ["a=1", "a=1,seed=1", "a=2", "a=2,seed=1"]


def test_the_size_of_a_chunk_may_follow_from_its_first_case():
    grid = Grid({"width": (1, 4)}, seeds=8, chunk=lambda case: 8 // case.integer("width"))
    assert [len(chunk.cases) for chunk in grid.chunks("s")] == [8, 2, 2, 2, 2]


GRIDS = st.builds(
    Grid,
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=3).map(tuple)
    ),
    seeds=st.integers(0, 5),
    together=st.sets(st.sampled_from(["a", "b", "seed"])).map(tuple),
    chunk=st.integers(1, 7),
)


@given(GRIDS)
def test_cutting_loses_nothing_doubles_nothing_and_depends_on_the_grid_alone(grid):
    chunks = list(grid.chunks("s"))
    cut = [case for chunk in chunks for case in chunk.cases]
    assert sorted(case.id for case in cut) == sorted(case.id for case in grid.cases())
    assert len(set(cut)) == len(cut)
    assert chunks == list(grid.chunks("s"))
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert 1 <= len(chunk.cases) <= grid.chunk
        for name in {name for case in chunk.cases for name, _ in case.params} - set(grid.together):
            assert len({case[name] for case in chunk.cases}) == 1


@given(GRIDS.filter(lambda grid: grid.seeds > 0), st.integers(1, 4))
def test_a_grid_that_gains_seeds_keeps_its_full_chunks(grid, more):
    """All but the last of each group, which fills up first; and no case moves."""
    grown = Grid(grid.varied, grid.fixed, grid.seeds + more, grid.together, grid.chunk)
    before, after = list(grid.chunks("s")), {chunk.id for chunk in grown.chunks("s")}
    for chunk, following in pairwise([*before, None]):
        apart = {pair for pair in chunk.cases[0].params if pair[0] not in grid.together}
        last = following is None or not apart <= set(following.cases[0].params)
        if len(chunk.cases) == grid.chunk or not (last and "seed" in grid.together):
            assert chunk.id in after


@given(GRIDS.filter(lambda grid: grid.seeds > 0), st.integers(1, 4))
def test_a_grid_that_gains_seeds_or_values_keeps_all_that_was_measured_with_default_settings(grid, more):
    before = Grid(grid.varied, grid.fixed, grid.seeds, grid.together)
    for grown in (
        Grid(grid.varied, grid.fixed, grid.seeds + more, grid.together),
        Grid({name: (*values, 100) for name, values in grid.varied.items()}, {}, grid.seeds, grid.together),
    ):
        assert {chunk.id for chunk in before.chunks("s")} <= {chunk.id for chunk in grown.chunks("s")}


@given(GRIDS)
def test_a_grid_that_gains_values_keeps_its_cases(grid):
    grown = Grid({**grid.varied, "a": (*grid.varied.get("a", ()), 100)}, {}, grid.seeds)
    if "a" in grid.varied:
        assert {case.id for case in grid.cases()} < {case.id for case in grown.cases()}


@given(GRIDS.filter(lambda grid: grid.seeds > 0), st.integers(1, 4))
def test_selection_seeds_add_chunks_after_all_others_and_change_none(grid, selection):
    grown = replace(grid, selection=selection)
    cases, before, after = list(grid.cases()), list(grid.chunks("s")), list(grown.chunks("s"))
    assert list(grown.cases())[: len(cases)] == cases
    assert after[: len(before)] == before
    chosen = [case for chunk in after[len(before) :] for case in chunk.cases]
    assert sorted(case.id for case in chosen) == sorted(case.id for case in list(grown.cases())[len(cases) :])
    assert grown.size == len(cases) + len(chosen) == grid.size * (grid.seeds + selection) // grid.seeds
    assert {case["seed"] for case in chosen} == set(range(-selection, 0))
    assert all(len(chunk.cases) <= grid.chunk for chunk in after)
    assert len({chunk.id for chunk in after}) == len(after)


def test_a_chunk_s_id_is_a_file_name_and_tells_what_is_shared():
    cases = tuple(Case.of({"model": "a/b:../c d", "seed": seed}) for seed in range(2))
    chunk = Chunk("s", cases)
    assert re.fullmatch(r"model=a_b_.._c_d-[0-9a-f]{16}", chunk.id)
    assert Chunk("s", cases[:1]).id != chunk.id
    assert Chunk("s", cases[::-1]).id != chunk.id  # rows come in the cases' order
    assert re.fullmatch(r"[0-9a-f]{16}", Chunk("s", tuple(Case.of({"seed": seed}) for seed in range(2))).id)
    long = Chunk("s", (Case.of({"text": "x" * 500}),)).id
    assert len(long) <= 137
    assert not Chunk("s", (Case.of({"a": "..."}),)).id.startswith(".")


@given(st.text(max_size=300))
def test_every_chunk_can_be_a_file(text):
    name = Chunk("s", (Case.of({"name": text}),)).id
    assert re.fullmatch(r"[A-Za-z0-9=_+.,-]+", name)
    assert name[0] not in ".-"
    assert len(name) <= 137


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Big", "2nd", "with-dash", "with space", "a/b", "é", "a" * 101, None])
def test_a_study_s_name_is_an_identifier(name):
    with pytest.raises(StudyError, match="is not a lower-case identifier"):
        study(name=name)


def test_a_study_has_a_quick_preset():
    with pytest.raises(StudyError, match="'some' has no preset 'quick'"):
        Study("some", "Why?", {"full": ()}, run, analyse, plot)


def test_a_topic_that_is_misspelt_is_told_with_the_nearest():
    with pytest.raises(StudyError, match=r"^study 'some': 'signl' is no topic of reports; did you mean 'signal'"):
        study(name="some", topic="signl")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_columns_lend_their_names_to_no_parameter(name):
    with pytest.raises(StudyError, match=f"parameter '{name}' has the name of a column"):
        study(Grid({name: (1,)})).chunks("quick")
    with pytest.raises(StudyError, match=f"parameter '{name}' has the name of a column"):
        study(Grid({"a": (1,)}, fixed={name: 2})).chunks("quick")


def test_two_grids_may_not_hold_one_case():
    with pytest.raises(StudyError, match="two cases have the id a=2"):
        study(Grid({"a": (1, 2)}), Grid({"a": (2, 3)})).chunks("quick")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a,b", 1, "'a,b' is no parameter's name"),
        ("a=b", 1, "'a=b' is no parameter's name"),
        ("", 1, "'' is no parameter's name"),
        (3, 1, "3 is no parameter's name"),
        ("a", (1, 2), "parameter 'a' is a tuple; parameters are str, int"),
        ("a", "caf\udce9", "parameter 'a' has a value that cannot be spelled"),
        pytest.param("a", 10**5000, "parameter 'a' has a value that cannot be spelled", id="digits"),
    ],
)
def test_what_no_id_can_hold_is_refused(name, value, message):
    for grid in (Grid({name: (value,)}), Grid({"z": (1,)}, fixed={name: value})):
        with pytest.raises(StudyError, match=re.escape(message)):
            study(grid).chunks("quick")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": None}, "its method is of type NoneType"),
        ({"caveats": "one that forgot its comma"}, "its caveats is of type str"),
        ({"caveats": (3,)}, "its caveats hold a int, where a str belongs"),
        ({"claims": ("text",)}, "its claims hold a str, where a Claim belongs"),
        ({"threads": "2"}, "its threads is of type str"),
        ({"time_limit": None}, "its time_limit is of type NoneType"),
        ({"time_limit": float("nan")}, "its time_limit is nan, not within 0.001 to 1e\\+07"),
        ({"time_limit": float("inf")}, "its time_limit is inf"),
        ({"threads": 0}, "its threads is 0, not within 1 to 1024"),
        ({"comparisons": -3}, "its comparisons is -3"),
    ],
)
def test_a_declaration_of_the_wrong_type_or_size_is_refused(fields, message):
    with pytest.raises(StudyError, match=f"study 'some': {message}"):
        study(**fields)


def refuse(_):
    raise SystemExit(0)


def test_a_grid_of_selection_seeds_alone_has_no_others() -> None:
    grid = Grid({"a": (1, 2)}, selection=2)
    assert [case.id for case in grid.cases()] == ["a=1,seed=-1", "a=2,seed=-1", "a=1,seed=-2", "a=2,seed=-2"]
    assert grid.size == 4
    assert [len(chunk.cases) for chunk in grid.chunks("s")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid({"a": "relu"}), "the values of 'a' are no tuple but 'relu'"),
        (Grid({"a": 3}), "the values of 'a' are no tuple but 3"),
        (Grid({"a": (1,)}, chunk=0), "a chunk holds at least 1 case, and a whole number; got 0"),
        (Grid({"a": (1,)}, chunk=-1), "a chunk holds at least 1 case, and a whole number; got -1"),
        (Grid({"a": (1,)}, chunk=lambda _: 1.5), "a chunk holds at least 1 case, and a whole number; got 1.5"),
        (Grid({"a": (1, 2)}, fixed={"a": 3}), "a grid varies 'a' and fixes it, too"),
        (Grid({"a": (1,)}, chunk=refuse), "a grid cannot be cut into chunks: SystemExit: 0"),
        (Grid({"a": (1,)}, seeds=-3), "a grid cannot have -3 seeds"),
        (Grid({"a": (1,)}, seeds=5, selection=-1), "a grid of 5 seeds cannot have -1 selection seeds"),
        (Grid({"a": (1,)}, seeds=5, selection=1.5), "a grid cannot be cut into chunks: TypeError"),
        (Grid({"a": (1,)}, seeds="many"), "a grid cannot be cut into chunks: TypeError"),
    ],
)
def test_a_grid_that_cannot_be_cut_is_refused(grid, message):
    with pytest.raises(StudyError, match=f"study 'some': {message}"):
        study(grid).chunks("quick")


def test_asking_for_seeds_changes_grids_that_have_any_and_leaves_selection_seeds():
    chosen = study(Grid({"a": (1,)}, seeds=3, selection=2))
    assert ids(chosen.chunks("quick", 1)) == [("a=1,seed=0",), ("a=1,seed=-1",), ("a=1,seed=-2",)]
    one = study(Grid({"a": (1,)}, seeds=3), Grid({"b": (1,)}))
    assert ids(one.chunks("quick", 2)) == [("a=1,seed=0",), ("a=1,seed=1",), ("b=1",)]
    assert ids(one.chunks("quick")) == [("a=1,seed=0",), ("a=1,seed=1",), ("a=1,seed=2",), ("b=1",)]
    with pytest.raises(KeyError, match="slow"):
        one.chunks("slow")


def test_a_grid_or_the_whole_study_runs_alone():
    grids = Grid({"a": (1,)}), Grid({"b": (1,)}, exclusive=True)
    some, all_of_it = study(*grids).chunks("quick"), study(*grids, exclusive=True).chunks("quick")
    assert [chunk.exclusive for chunk in some] == [False, True]
    assert [chunk.exclusive for chunk in all_of_it] == [True, True]
    assert [chunk.id for chunk in some] == [chunk.id for chunk in all_of_it]  # how it runs is not what it is


def test_defaults_are_those_that_make_results_repeatable():
    one = study()
    assert (one.threads, one.exclusive, one.comparisons) == (1, False, 0)
    assert Context() == Context("cpu", None)
