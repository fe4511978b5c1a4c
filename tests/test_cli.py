import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from depthgauge import discovery, reports, running, store
from depthgauge.cli import main
from depthgauge.cli.run import default_directory
from depthgauge.factories import Target
from depthgauge.folder import Folder
from depthgauge.topics import TOPICS

STUDIES = Path(__file__).parent / "engine_studies"
WALK, TROUBLE, CLOCK = (str(STUDIES / f"{name}.py") for name in ("walk", "trouble", "clock"))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """`depthgauge ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words, prog_name="depthgauge")


def sentence(result, code):
    """The one line that a user's error ends in."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("depthgauge: ")
    return line.removeprefix("depthgauge: ")


# -- the commands ------------------------------------------------------------------------------------------------------


def test_run_measures_reports_and_says_where(call, tmp_path):
    result = call("run", "walk", "--workers", "0", "--studies", WALK)
    assert result.exit_code == 0, result.output
    report = Path("runs/walk-quick/report/report.md")
    assert result.stdout.splitlines()[-2:] == [str(report.with_name("index.html")), str(report)]
    assert (tmp_path / report).exists()
    told = result.stderr.splitlines()
    assert told[0] == "walk at preset quick; runs/walk-quick/report/index.html is there at the end"
    assert told[1] == "walk: How far does a random walk get?"
    assert "chunk" not in result.stderr
    assert result.stdout.splitlines()[0] == "1 claim: 1 undecided"
    assert "48 cases measured" in result.stderr
    again = call("run", "walk", "--workers", "0", "--studies", WALK)
    assert "0 cases measured, 48 kept from before" in again.stderr
    assert again.stdout == result.stdout


def test_report_renders_again_and_runs_nothing(call, tmp_path, monkeypatch):
    call("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    first = (tmp_path / "x/report/report.md").read_bytes()
    (tmp_path / "x/report/report.md").unlink()
    monkeypatch.setattr(running, "run", None)
    result = call("report", "x")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x/report/report.md").read_bytes() == first
    assert call("report", "x", "--studies", WALK).exit_code == 0


def test_a_study_that_is_a_package_is_found_again_from_another_folder(call, tmp_path, monkeypatch):
    package = tmp_path / "elsewhere" / "packed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(Path(WALK).read_text().replace('"walk"', '"packed"'))
    with monkeypatch.context() as imported:
        imported.setattr(sys, "path", [*sys.path])
        imported.setattr(sys, "modules", {**sys.modules})
        call("run", "packed", "--workers", "0", "--studies", str(package), "--out", "x")
    assert json.loads(Path("x/run.json").read_text())["request"]["packed"]["origin"] == str(package)
    first = Path("x/report/findings.json").read_bytes()
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "packed" not in sys.modules
    assert call("report", "x").exit_code == 0
    assert Path("x/report/findings.json").read_bytes() == first

    package.rename(tmp_path / "moved")
    told = sentence(call("report", "x"), 1)
    assert told.startswith("the report in x/report stays as it is: without the code of packed")
    assert Path("x/report/findings.json").read_bytes() == first


def test_studies_join_in_one_directory_and_one_report(call, tmp_path):
    call("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    result = call("run", "clock", "--workers", "0", "--studies", CLOCK, "--out", "x")
    assert result.exit_code == 0, result.output
    findings = json.loads((tmp_path / "x/report/findings.json").read_bytes())
    assert set(findings["studies"]) == {"clock", "walk"}


def test_list_tells_what_there_is_in_groups(call):
    text = call("list", "--studies", WALK)
    assert text.exit_code == 0, text.output
    assert re.search(r"^  walk +How far does a random walk get\? \(1 claim\)$", text.stdout, re.MULTILINE)
    assert "walk/spread" not in text.stdout
    told = json.loads(call("list", "--json", "--studies", WALK).stdout)
    assert told["schema"] == 1
    walk = next(study for study in told["studies"] if study["name"] == "walk")
    assert walk["presets"] == ["quick", "standard"]
    assert walk["claims"] == [{"id": "walk/spread", "text": "a walk's end spreads with the square root of its steps"}]
    assert "mlp" in [model["name"] for model in told["models"]]
    assert "mnist5k" in [data["name"] for data in told["data"]]
    assert all(data["license"] for data in told["data"])
    assert re.search("^  fashion5k +5,000 training images of Fashion-MNIST", text.stdout, re.MULTILINE)
    assert "the first 500 of each class; shipped; MIT (Zalando SE)" in text.stdout
    titles = [line for line in text.stdout.splitlines() if line and not line.startswith(" ")]
    assert titles == ["studies", "models", "data", "activations", "initializations"]


def test_list_tells_each_claim_and_what_became_of_it(call):
    lines = call("list", "--claims", "--studies", WALK).stdout.splitlines()
    assert lines[-2:] == [
        "How far does a random walk get?",
        "  walk/spread  unpublished     a walk's end spreads with the square root of its steps",
    ]
    assert lines[0] == TOPICS[0].question
    names = [line.split()[0] for line in lines if line.startswith(" ")]
    assert len(names) == len(set(names))
    claims = json.loads(call("list", "--json", "--studies", WALK).stdout)["claims"]
    assert {claim["id"] for claim in claims} == set(names)
    assert all(set(claim) == {"id", "text", "study", "topic", "published"} for claim in claims)
    loaded = {
        (study.name, claim.id): claim.topic or study.topic
        for study in (found.load() for found in discovery.discover((WALK,)))
        for claim in study.claims
    }
    assert {(claim["study"], claim["id"]): claim["topic"] for claim in claims} == loaded
    published = json.loads((Path(reports.__file__).parent / "published_claims.json").read_bytes())["claims"]
    whole = {each["study"] for every in published.values() for each in every}  # a study is published whole, or not yet
    for claim in claims:
        said = [each["status"] for each in published.get(claim["id"], ()) if each["study"] == claim["study"]]
        assert [each["status"] for each in claim["published"]] == said
        assert said or claim["study"] not in whole, f"{claim['id']} of {claim['study']} was never published"


def test_every_command_explains_itself_with_an_example(call):
    assert call("--help").exit_code == 0
    for name, command in main.commands.items():
        told = call(name, "--help")
        assert told.exit_code == 0
        assert "depthgauge" in told.output
        assert "Example" in told.output
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_default_directory_follows_from_the_request():
    assert default_directory((), "quick", "cpu") == Path("runs/all-quick")
    assert default_directory(("a", "b", "a"), "full", "cuda:1") == Path("runs/a+b-full-cuda1")
    specs = [Target(f"{'a' * 300}:{name}", None) for name in ("one", "two")]
    long = [default_directory((), "quick", "cpu", spec) for spec in specs]
    assert long[0] != long[1]
    assert all(len(path.name) <= 150 and path.name.startswith("all-quick-aaa") for path in long)


# -- what a user can get wrong -----------------------------------------------------------------------------------------


FOUND = ("run", "walk", "--studies", WALK)
WRONG = {
    ("runn",): "there is no command 'runn'; did you mean 'run'?",
    ("zzz",): "there is no command 'zzz'; there are ",
    ("run", "wlak", "--studies", WALK): "there is no study 'wlak'; did you mean 'walk'?",
    ("run", "walk", "--studies", "nowhere.py"): "'nowhere.py' is neither a file, a folder nor an importable package",
    ("run", "gradient_flo"): "there is no study 'gradient_flo'; did you mean 'gradient_flow'?",
    (
        "run",
        "regularisation",
    ): "there is no study 'regularisation'; 'What regularizes?' is asked by regularization; there are activation, ",
    (
        "run",
        "devices",
    ): "there is no study 'devices'; 'How many devices?' is asked by data_parallel; there are activation, ",
    ("gradient_flow",): "'gradient_flow' is a study: depthgauge run gradient_flow",
    (*FOUND, "--opne"): "there is no option --opne; did you mean --open?",
    (*FOUND, "--preset", "quik"): "study 'walk' has no preset 'quik'; did you mean 'quick'?",
    (*FOUND, "--preset", "zzz"): "study 'walk' has no preset 'zzz'; it has quick, standard",
    ("run", "--preset", "standart"): "study 'gradient_flow' has no preset 'standart'; did you mean 'standard'?",
    (*FOUND, "--device", "cpuu"): "there is no device 'cpuu'; did you mean 'cpu'?",
    ("run", "--seeds", "0"): "Invalid value for '--seeds': 0 is not in the range 1<=x<=1000000000.",
    ("run", "--seeds", "many"): "Invalid value for '--seeds': 'many' is not a valid whole number.",
    ("run", "--workers", "-1"): "Invalid value for '--workers': -1 is not in the range 0<=x<=",
    ("run", "--time-limit", "0"): "Invalid value for '--time-limit': 0.0 is not in the range 0.001<=x<=31536000.",
    ("run", "--time-limit", "inf"): "Invalid value for '--time-limit': inf is not in the range 0.001<=x<=31536000.",
    ("run", "--time-limit", "nan"): "Invalid value for '--time-limit': nan is not in the range 0.001<=x<=31536000.",
    ("run", "--workers", "100000"): "Invalid value for '--workers': 100000 is not in the range 0<=x<=",
    ("run", "--seeds", "9" * 5000): "Invalid value for '--seeds': ",
    (
        "profile",
        "mlp",
        "--batch",
        "1000000000",
    ): "a batch of shape 1000000000,1,28,28 takes 2,920 GiB, and this machine ",
    ("profile", "mlp", "--batch", "9" * 30): "Invalid value for '--batch': ",
    ("profile", "mlp", "--input-shape", "9" * 30): "Invalid value for '--input-shape': ",
    (
        "profile",
        "mlp",
        "--input-shape",
        "3,-1",
    ): "Invalid value for '--input-shape': '3,-1' is not a shape such as 3,224",
    ("profile", "mlp", "--tokens", "9" * 30): "Invalid value for '--tokens': ",
    ("profile", "mlp", "--threads", "100000"): "Invalid value for '--threads': 100000 is not in the range 1<=x<=",
    ("profile", "mlp", "--seconds", "inf"): "Invalid value for '--seconds': inf is not in the range",
    ("profile", "mlp", "--port", "99999"): "Invalid value for '--port': 99999 is not in the range 0<=x<=65535.",
    ("bench", "ab", "pass", "pass", "--budget", "nan"): "Invalid value for '--budget': nan is not in the range",
    ("bench", "ab", "pass", "pass", "--threads", "100000"): "Invalid value for '--threads': 100000 is not in the range",
    ("bench", "compare", "a", "b", "--margin", "inf"): "Invalid value for '--margin': inf is not in the range",
    ("list", "x"): "Got unexpected extra argument (x); see depthgauge list --help",
    ("run", "--sedes", "3"): "there is no option --sedes; did you mean --seeds?",
    ("run", "--dask", "tcp://x", "--workers", "2"): "--dask and --workers exclude each other: the cluster has its own",
    ("report",): "Missing argument 'DIRECTORY...'; see depthgauge report --help",
}


@pytest.mark.parametrize(("words", "told"), WRONG.items(), ids=lambda part: " ".join(part[-2:])[:60])
def test_a_wrong_command_line_ends_in_one_sentence_and_2(call, tmp_path, words, told):
    result = call(*words)
    assert sentence(result, 2).startswith(told)
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raised", ["KeyError('x')", "SystemExit(0)", "GeneratorExit('x')"])
def test_a_factory_that_raises_anything(call, tmp_path, raised):
    name = f"raising_{raised.partition('(')[0].lower()}"
    (tmp_path / f"{name}.py").write_text(f"def make():\n    raise {raised}\n")
    for words in (("profile", f"{name}:make"), ("run", "--model", f"{name}:make")):
        told = sentence(call(*words), 2)
        assert told.startswith(f"{name}:make raised {raised.partition('(')[0]} when it was called: ")


@pytest.mark.parametrize("source", ["-" * 100_000 + "1", "(" * 100_000, "x = 1\n\0"], ids=["deep", "open", "null"])
def test_a_study_that_python_cannot_read(call, tmp_path, source):
    (tmp_path / "odd.py").write_text(source)
    assert "odd  " in call("list", "--studies", "odd.py").stdout
    told = sentence(call("run", "odd", "--studies", "odd.py"), 1)
    assert re.fullmatch(r".*odd\.py cannot be read as Python: .{5,}", told)


def test_more_cases_than_a_run_takes(call):
    told = sentence(call("run", "walk", "--studies", WALK, "--seeds", "100000000"), 1)
    assert told == "study 'walk' has 800,000,000 cases; a run takes at most 1,000,000: use fewer seeds"


def test_cuda_where_there_is_none(call, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = sentence(call("run", "walk", "--studies", WALK, "--device", "cuda"), 2)
    assert told.startswith("device 'cuda' needs CUDA")


def test_directories_that_are_no_runs(call, tmp_path):
    assert (
        sentence(call("report", "nowhere"), 2) == "nowhere holds neither a run nor profiles: there is no such directory"
    )
    (tmp_path / "runs" / "night").mkdir(parents=True)
    (tmp_path / "runs" / "night" / "run.json").touch()
    for wrong in ("runs/nigth", "run/night"):
        assert sentence(call("report", wrong), 2).endswith("there is no such directory; did you mean runs/night?")
    far = sentence(call("report", str(tmp_path / "runs/quite_another")), 2)  # a long way in common is no likeness
    assert far.endswith("there is no such directory")


def test_a_neighbour_that_may_not_be_looked_into_spoils_no_sentence(call, tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    look = Path.is_file

    def refused(path):
        if path.parent.name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert sentence(call("report", "privat"), 2).endswith("there is no such directory")


def test_directories_of_other_things(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "mine holds neither a run nor profiles: it holds no run.json" in sentence(call("report", "mine"), 2)
    told = sentence(call("run", "walk", "--studies", WALK, "--out", "mine", "--fresh"), 1)
    assert told == "mine is not a run directory: it holds 'thesis.tex' and no run.json"


def test_a_directory_in_use_or_made_otherwise(call, tmp_path):
    words = ("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    call(*words)
    with store.Store.open("x", store.read("x").run["fingerprint"]):
        assert f"x is in use by process {os.getpid()} on " in sentence(call(*words), 1)
    run = json.loads((tmp_path / "x/run.json").read_bytes())
    run["fingerprint"]["torch"] = "0.1"
    (tmp_path / "x/run.json").write_text(json.dumps(run))
    told = sentence(call(*words), 1)
    assert "another environment: torch 0.1 -> " in told
    assert "--fresh" in told
    assert call(*words, "--fresh").exit_code == 0


def test_a_damaged_file_is_told_by_run_and_report(call, tmp_path):
    words = ("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    call(*words)
    path = next((tmp_path / "x/chunks/walk").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])
    assert "is damaged" in sentence(call("report", "x"), 1)
    result = call(*words)
    assert result.exit_code == 0
    assert "set aside, and measured anew" in result.stderr
    assert re.search(r"3 cases measured in \d+ s, 45 kept from before", result.stderr)


def test_a_run_that_measured_nothing_is_a_failure_with_a_report(call, tmp_path):
    (tmp_path / "barren.py").write_text(
        textwrap.dedent("""
            from depthgauge.study import Grid, Study
            from depthgauge.verdict import Findings

            def run(cases, context):
                raise ValueError("no luck")

            STUDY = Study(
                name="barren", question="Is there anything?", presets={"quick": (Grid({"x": (1, 2)}),)},
                run=run, analyse=lambda frame: Findings(()), plot=lambda findings: (),
            )
        """)
    )
    result = call("run", "barren", "--workers", "0", "--studies", "barren.py")
    told = "nothing was measured: 2 cases (error) (ValueError: no luck (in run, barren.py:6)); the report says why, "
    assert sentence(result, 1) == f"{told}case by case"
    assert (tmp_path / "runs/barren-quick/report/report.md").exists()


def test_few_seeds_are_noted_before_anything_runs(call):
    result = call("run", "walk", "--workers", "0", "--studies", WALK, "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[1] == ("walk: fewer than 5 seeds give points, and verdicts that are inconclusive")


def test_a_disk_that_fills_while_the_report_is_written(call, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    words = ("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    with monkeypatch.context() as patch:
        patch.setattr(reports, "render", full)
        told = sentence(call(*words), 1)
    assert told.startswith("the report of x cannot be written: the disk is full; what is finished is kept")
    assert "0 cases measured, 48 kept" in call(*words).stderr


def test_a_disk_that_fills_while_a_chunk_is_written(call, monkeypatch, tmp_path):
    writes = []

    def full(self, names, data, write=Folder.write):
        writes.append(names)
        if len(writes) > 6:
            raise OSError(28, "No space left on device")
        write(self, names, data)

    words = ("run", "walk", "--workers", "0", "--studies", WALK, "--out", "x")
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        assert "the disk is full" in sentence(call(*words), 1)
    kept = len(list((tmp_path / "x/chunks/walk").glob("*.parquet")))
    assert kept > 0
    last = call(*words).stderr.splitlines()[-1]
    assert re.fullmatch(rf"{3 * (16 - kept)} cases measured in \d+ s, {3 * kept} kept from before", last)


def test_ctrl_c_is_130_and_says_how_to_go_on(call, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", interrupted)
    told = sentence(call("run", "walk", "--studies", WALK, "--out", "my runs"), 130)
    assert told == "stopped; what is finished is kept in 'my runs': run the same command to resume"


# -- in a process of its own -------------------------------------------------------------------------------------------


def test_help_and_list_import_nothing_heavy():
    code = """
        import sys
        from depthgauge.cli import main
        for words in (["--help"], ["run", "--help"], ["list"], ["list", "--json"]):
            try:
                main(words)
            except SystemExit as end:
                assert end.code == 0, words
        heavy = {"torch", "pandas", "numpy", "scipy", "pyarrow", "matplotlib", "sklearn", "rich"}
        print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert done.stderr.split() == []


def test_a_run_says_what_it_will_do_before_anything_heavy_is_loaded(tmp_path):
    """numpy, which tells how fast the machine is, takes a tenth of a second; the others take seconds."""
    code = f"""
        import sys
        from depthgauge.cli import main, output

        def say(line):
            heavy = {{"torch", "pandas", "scipy", "pyarrow", "matplotlib", "sklearn", "numba"}}
            print(line.partition(" at ")[0], *sorted(heavy & sys.modules.keys()), sep="; ")
            sys.stdout.flush()
            os._exit(0)

        import os
        output.say = say
        main(["run", "--out", {str(tmp_path / "x")!r}])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"\d+ studies\n", done.stdout)


def test_the_module_is_a_program():
    done = subprocess.run([sys.executable, "-m", "depthgauge", "--version"], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"depthgauge, version \d+\.\d+.*\n", done.stdout)


@pytest.mark.slow
@pytest.mark.alone
def test_a_terminal_sees_a_bar_with_the_time_left(tmp_path):
    inner, outer = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "depthgauge",
        "run",
        "clock",
        "--preset",
        "slow",
        "--workers",
        "0",
        "--studies",
        CLOCK,
    ]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=outer,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(outer)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal is closed when the process ends
            while piece := os.read(inner, 4096):
                seen += piece
        assert process.wait(60) == 0
    os.close(inner)
    text = seen.decode()
    assert "━" in text
    assert re.search(r"\d+%", text)
    assert "chunk" not in text
    assert re.search(r"about \d+ s left", text)


def test_list_names_the_activations_and_initializations_that_there_are() -> None:
    from depthgauge import initialization, theory

    done = CliRunner().invoke(main, ["list", "--json"])
    told = json.loads(done.output)
    assert {item["name"] for item in told["activations"]} == set(theory.activation_names())
    assert [item["name"] for item in told["initializations"]] == list(initialization.SCHEMES)


def commands(group=main, before=()):
    for name, command in sorted(group.commands.items()):
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_keeps_the_lines_of_an_example_apart(call, words):
    text = call(*words, "--help").output
    assert "\\b" not in text
    assert re.search(rf"^ +depthgauge {' '.join(words)}\b", text, re.MULTILINE)


def test_without_a_command_the_help_is_shown_as_it_is(call):
    result = call()
    assert result.exit_code == 2
    assert result.stderr.rstrip() == call("--help").stdout.rstrip()


def test_a_folder_without_studies_is_refused(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shapes.py").touch()
    for words in (("run", "--studies", "mine"), ("list", "--studies", "mine")):
        assert sentence(call(*words), 2) == "there is no study in 'mine': a study is a file with a module-level STUDY"
