"""`depthgauge bench`, as a user meets it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from depthgauge.cli import answers, main
from depthgauge.timing import variants
from depthgauge.timing.spending import Spent

command = importlib.import_module("depthgauge.cli.bench")  # the package's `bench` is the command of that name


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["bench", *words], prog_name="depthgauge")


def sentence(result, code):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line.removeprefix("depthgauge: ")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.9999, "1 s"), (0.99949, "999 ms"), (9.9999e-4, "1 ms"), (999.7e-9, "1 us"), (5e-10, "0.5 ns"),
        (999.4, "999 s"), (1234.5, "1,234 s"), (0.0138, "13.8 ms"),
    ],
)  # fmt: skip
def test_a_duration_has_three_digits_and_no_power_of_ten(seconds, told):
    assert answers.spelled(seconds) == told


@pytest.mark.parametrize(
    ("factor", "told"), [(1.05, "5 %"), (0.99, "-1 %"), (1.996, "100 %"), (2.5, "150 %"), (11, "1,000 %")]
)
def test_percents_have_no_power_of_ten(factor, told):
    assert answers.percent(factor) == told


@pytest.mark.parametrize(
    ("sitting", "budget", "told"),
    [
        (0.01, 0.4, "an answer takes 80 ms to 400 ms: "), (0.01, 30, "an answer takes 1 to 30 s: "),
        (0.001, 0.004, "an answer takes 8 ms at least, and there is 4 ms: --budget 1"),
        (30, 180, "an answer takes 240 s at least, and there is 180 s: --budget 480"),
    ],
)  # fmt: skip
def test_what_an_answer_takes_is_told_and_the_budget_that_is_named_is_one(sitting, budget, told, capsys):
    importlib.import_module("depthgauge.cli.bench_ab")._expect(sitting, budget)
    assert told in capsys.readouterr().err


# -- ab ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costing:
    """A variant that is what it costs, half of it in `shared`; what costs 3 runs no operator."""

    cost: str
    noise: np.random.Generator
    spread: float

    def __call__(self):
        return float(self.cost) * float(np.exp(self.spread * self.noise.standard_normal()))

    def why(self, by="operator"):
        by = "function" if self.cost == "3" else by
        return Spent.of(self.cost, by, [("shared", 1.0, 0.5), (f"own {self.cost}", 2.0, float(self.cost) - 0.5)])


@pytest.fixture
def simulated(monkeypatch):
    """Variants are what they cost: `1.1`; they take no time of the machine's."""

    @contextlib.contextmanager
    def expressions(costs, *, setup, threads, device):
        noise = np.random.default_rng(0)
        spread = 0.001 if setup == "pass" else float(setup)

        @contextlib.contextmanager
        def sitting(_number):
            yield [Costing(cost, noise, spread) for cost in (costs[0], *costs)]

        yield sitting

    monkeypatch.setattr(variants, "expressions", expressions)


@pytest.mark.parametrize(
    ("words", "code", "verdicts"),
    [
        (("1", "1"), 0, ["same"]),
        (("1", "0.8"), 0, ["faster"]),
        (("1", "1.2"), answers.SLOWER, ["slower"]),
        (("1", "1.2", "--setup", "2.0"), answers.INCONCLUSIVE, ["inconclusive"]),
        (("1", "0.8", "1.2", "1"), answers.SLOWER, ["faster", "slower", "same"]),
    ],
)
def test_exit_codes_and_verdicts(call, simulated, words, code, verdicts):
    told = call("ab", *words, "--json")
    assert told.exit_code == code, told.output
    found = json.loads(told.stdout)
    assert [each["verdict"] for each in found["compared"]] == verdicts
    assert found["resolvable"] >= found["resolution"] >= 1
    shown = call("ab", *words)
    assert shown.exit_code == code
    assert all(verdict in shown.stdout for verdict in verdicts)
    assert "or more are reported; A differs from itself by up to" in shown.stdout


def test_why_names_the_part_that_differs(call, simulated):
    shown = call("ab", "1", "1.2", "--why")
    assert "Why, by operator" in shown.stdout
    assert "Most of what B differs by from A, +200 ms: own 1.2, +700 ms." in shown.stdout
    line = next(line for line in shown.stdout.splitlines() if line.startswith("shared"))
    assert line.split() == ["shared", "500", "ms", "500", "ms", "-", "1"]
    told = json.loads(call("ab", "1", "1.2", "--why", "--json").stdout)["why"]
    assert [each["variant"] for each in told] == ["1", "1.2"]
    assert told[1]["parts"][1] == {"name": "own 1.2", "calls": 2.0, "seconds": pytest.approx(0.7)}
    assert "why" not in json.loads(call("ab", "1", "1.2", "--json").stdout)


def test_variants_without_operators_make_all_be_told_by_function(call, simulated):
    assert "Why, by function" in call("ab", "1", "3", "--why").stdout


def test_the_time_that_an_answer_takes_is_told_first(call, simulated):
    assert "an answer takes 1 to 30 s: it ends as soon as it is sharp" in call("ab", "1", "1").stderr


def test_a_device_is_checked_and_passed_on(call, monkeypatch):
    asked = []
    monkeypatch.setattr(
        variants, "expressions", lambda _costs, **options: asked.append(options) or contextlib.nullcontext(None)
    )
    told = sentence(call("ab", "1", "1", "--device", "cuuda"), 2)
    assert told.startswith("there is no device 'cuuda'")
    assert not asked
    call("ab", "1", "1", "--device", "cpu")
    call("ab", "1", "1")
    assert [options["device"] for options in asked] == ["cpu", ""]


def test_the_codes_differ_from_each_other_and_from_those_of_other_commands():
    assert len({0, 1, 2, 130, answers.SLOWER, answers.INCONCLUSIVE, answers.NOTHING}) == 7


def test_too_little_time_is_inconclusive_and_none_is_nothing(call):
    told = call("ab", "sum(range(200))", "sum(range(200))", "--budget", "0.6")
    if told.exit_code == answers.INCONCLUSIVE:  # how much fits is the machine's matter
        assert "of at least 8 sittings fit into" in told.stdout
    else:
        assert sentence(told, answers.NOTHING).startswith("nothing was measured: not even one turn fits")
    assert sentence(call("ab", "pass", "pass", "--budget", "0.001"), answers.NOTHING)


WRONG = {
    ("ab", "pass"): (2, "a comparison takes two variants or more, the baseline first"),
    ("ab", "y", "pass"): (5, "the statement of variant 'y' raised NameError: name 'y' is not defined"),
    ("ab", "HEAD", ".", "--time", "pass"): (5, "revisions need a git repository: "),
    ("ab", "pass", "pass", "--margin", "-1"): (2, "Invalid value for '--margin': -1.0 is not in the range 0<=x<=1000."),
    ("compare", "x", "y"): (2, "there is no run 'x', neither as a file nor in .benchmarks"),
    ("comapre", "x", "y"): (2, "there is no command 'comapre'; did you mean 'compare'?"),
    (): (1, "the benchmark suite is not part of the installed package: "),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_a_user_can_get_wrong(call, words, monkeypatch):
    monkeypatch.setattr(command.depthgauge, "__file__", "/nowhere/lib/depthgauge/__init__.py")
    code, told = WRONG[words]
    assert sentence(call(*words), code).startswith(told)


# -- compare -----------------------------------------------------------------------------------------------------------


def stored(path: Path, **medians: float) -> str:
    draw = np.random.default_rng(len(path.name))
    told = [
        {
            "fullname": name,
            "extra_info": {"reference": name == "still"},
            "stats": {"data": list(median * np.exp(0.001 * draw.standard_normal(60)))},
        }
        for name, median in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": told}))
    return str(path)


@pytest.mark.parametrize(
    ("after", "code", "verdict"),
    [
        ({"still": 1.0, "work": 1.0}, 0, "same"),
        ({"still": 1.0, "work": 0.5}, 0, "faster"),
        ({"still": 1.0, "work": 1.5}, answers.SLOWER, "slower"),
        ({"still": 1.5, "work": 1.5}, answers.INCONCLUSIVE, "inconclusive"),
        ({"work": 1.5}, answers.INCONCLUSIVE, "inconclusive"),
    ],
)
def test_compare(call, tmp_path, after, code, verdict):
    files = stored(tmp_path / "a.json", still=1.0, work=1.0), stored(tmp_path / "b.json", **after)
    shown, told = call("compare", *files), call("compare", *files, "--json")
    assert (shown.exit_code, told.exit_code) == (code, code), shown.output
    assert verdict in shown.stdout
    assert "the runs were not interleaved" in shown.stdout
    assert [row["verdict"] for row in json.loads(told.stdout)["benchmarks"]] == [verdict]


def test_the_page_of_a_comparison_has_every_ratio_and_the_history(call, tmp_path):
    files = (
        stored(tmp_path / "a.json", still=1.0, work=1.0, other=1.0),
        stored(tmp_path / "b.json", still=1.0, work=1.5),
    )
    stored(tmp_path / "older.json", still=2.0, work=4.0)  # a machine half as fast
    (tmp_path / "notes.json").write_text("{}")  # no run, and no hindrance
    shown = call("compare", *files, "--html", "pages/x.html")
    assert shown.exit_code == answers.SLOWER, shown.output
    assert shown.stdout.splitlines()[-1] == "pages/x.html"
    page = (tmp_path / "pages/x.html").read_text()
    assert "Of 1 benchmarks: 1 slower. The slowest in comparison: work, 1.5 times as long." in page
    assert page.count('<circle class="worse"') == 1 + 2 * 2  # the ratio; two marked runs in each of two histories
    assert "3 stored runs" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == ["data:,"]


def test_a_page_is_written_to_regular_files_alone(call, tmp_path):
    """A pipe that nobody reads would hold the command for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", "."):
        told = sentence(call("compare", "x", "y", "--html", path), 2)
        assert told == f"{path} is not a regular file; name one for the page, or a new one"


def test_compare_runs_without_a_benchmark_in_common(call, tmp_path):
    files = stored(tmp_path / "a.json", one=1.0), stored(tmp_path / "b.json", other=1.0)
    assert "share no benchmark" in sentence(call("compare", *files), answers.NOTHING)


# -- the suite ---------------------------------------------------------------------------------------------------------


def test_the_suite_runs_in_a_checkout_with_the_options_passed_on(call, tmp_path, monkeypatch):
    asked = []
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "conftest.py").touch()
    (tmp_path / "src" / "depthgauge").mkdir(parents=True)
    code = 0

    def run(words, *, cwd, check):
        asked.append((words[3:], cwd))
        return subprocess.CompletedProcess(words, code)

    monkeypatch.setattr(command.subprocess, "run", run)
    assert call().exit_code == 0
    assert call("--full", "-k", "mlp", "--device", "cpu", "--json", "x.json", "--save", "n").exit_code == 0
    assert asked == [
        (["--benchmark"], tmp_path),
        (
            [
                *("--benchmark", "--benchmark-full", "-k", "mlp", "--benchmark-device", "cpu"),
                *("--benchmark-json", str(tmp_path / "x.json"), "--benchmark-save", "n"),
            ],
            tmp_path,
        ),
    ]
    for code, expected in ((1, 1), (5, 5), (4, 2), (2, 1), (3, 1)):  # noqa: B007 - `run` returns it
        assert call().exit_code == expected


SUITE = {
    ("--device", "cpuu"): "there is no device 'cpuu'; did you mean 'cpu'?",
    ("--json", "nowhere/x.json"): "--json nowhere/x.json needs a folder nowhere that exists",
    ("--json", "."): "--json . is a folder; name a file",
    ("--save", "a/b"): "--save 'a/b' is not a valid file name: use up to 100 letters, digits, and any of ._+-",
}


@pytest.mark.parametrize("words", SUITE)
def test_what_the_suite_cannot_do_is_told_before_it_runs(call, words, monkeypatch):
    monkeypatch.setattr(command, "_checkout", Path.cwd)
    monkeypatch.setattr(command.subprocess, "run", None)
    assert sentence(call(*words), 2) == SUITE[words]


def test_a_name_that_no_benchmark_has(call, monkeypatch):
    monkeypatch.setattr(command, "_checkout", Path.cwd)
    monkeypatch.setattr(command.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 5))
    told = sentence(call("-k", "nosuch"), answers.NOTHING)
    assert told == "no benchmark's name matches -k 'nosuch'; leave -k out to run all"


def test_every_subcommand_explains_itself_with_an_example(call):
    for name, sub in command.bench.commands.items():
        told = call(name, "--help")
        assert told.exit_code == 0
        assert "Example" in told.output
        assert "Exit codes: " in told.output
        assert all(option.help for option in sub.params if isinstance(option, click.Option))
