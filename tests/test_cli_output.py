"""Where a command writes: terminals of any kind, pipes that close, devices that are full, and nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from depthgauge.cli import errors, main, output
from depthgauge.cli.answers import INCONCLUSIVE, NOTHING, SLOWER

pytestmark = pytest.mark.slow  # each runs a study, or a command in a process of its own

STUDIES = Path(__file__).parent / "engine_studies"
WALK = str(STUDIES / "walk.py")
PROGRAM = f"{sys.executable} -m depthgauge"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `depthgauge` is ours."""
    script = f'set -o pipefail; depthgauge() {{ {PROGRAM} "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    told = subprocess.CompletedProcess(line, done.returncode, *map(os.fsdecode, (done.stdout, done.stderr)))
    assert "Traceback" not in told.stderr
    assert "Exception ignored" not in told.stderr
    return told


NOWHERE = "the answer cannot be written to stdout: "


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("depthgauge list >&-", f"{NOWHERE}Bad file descriptor"),
        ("depthgauge list --json >/dev/full", f"{NOWHERE}No space left on device"),
        ("depthgauge list <&- >&-", f"{NOWHERE}Bad file descriptor"),
        ("depthgauge --help >/dev/full", "the output cannot be written: the disk is full"),
        ("depthgauge run --help >&-", "the output cannot be written: Bad file descriptor"),
        ("depthgauge --version >&-", "the output cannot be written: Bad file descriptor"),
    ],
)
def test_an_answer_that_cannot_be_written_is_one_sentence(tmp_path: Path, line: str, told: str) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"depthgauge: {told}")


@pytest.mark.parametrize("words", ["list", "list --json", "--help"])
def test_a_reader_that_has_enough_is_told_nothing(tmp_path: Path, words: str) -> None:
    done = shell(f"depthgauge {words} | exec true", tmp_path)
    assert (done.returncode, done.stderr) in [(1, ""), (0, "")]  # 0: all was written before the reader left


@pytest.mark.parametrize("line", ["depthgauge lst 2>&-", "depthgauge lst 2>/dev/full", "depthgauge lst <&- >&- 2>&-"])
def test_the_code_stays_where_the_sentence_cannot_be_written(tmp_path: Path, line: str) -> None:
    assert shell(line, tmp_path).returncode == 2


@pytest.mark.slow
def test_a_run_without_stdout_is_whole_and_one_without_stderr_goes_on(tmp_path: Path) -> None:
    run = f"depthgauge run walk --workers 0 --studies {WALK}"
    closed = shell(f"{run} --out x <&- >&-", tmp_path)
    assert closed.returncode == 1
    assert closed.stderr.splitlines()[-1] == f"depthgauge: {NOWHERE}Bad file descriptor"
    assert json.loads((tmp_path / "x/report/findings.json").read_bytes())["studies"]["walk"]["cases"] == 48
    again = shell(f"{run} --out x 2>/dev/full", tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[-1] == "x/report/report.md"


STRANGE: dict[str, dict[str, str]] = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "0 columns": {"COLUMNS": "0"},
    "1 column": {"COLUMNS": "1"},
    "columns": {"COLUMNS": "9" * 30},
    "no columns": {"COLUMNS": "-x"},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_terminals_of_any_kind(tmp_path: Path, strange: str) -> None:
    (tmp_path / "greek.py").write_text(
        "from depthgauge.study import Study\nSTUDY = Study(name='greek', question='Is σ² = 1 — always?')\n",
        encoding="utf-8",
    )  # fmt: skip
    done = shell("depthgauge list --studies greek.py; depthgauge run --help", tmp_path, **STRANGE[strange])
    assert done.returncode == 0, done.stderr
    spelled = "\\u03c3" if "PYTHONIOENCODING" in STRANGE[strange] or strange == "C" else "σ"
    assert spelled in done.stdout
    told = json.loads(shell("depthgauge list --json --studies greek.py", tmp_path, **STRANGE[strange]).stdout)
    assert next(one for one in told["studies"] if one["name"] == "greek")["question"] == "Is σ² = 1 — always?"
    wrong = shell("depthgauge run naïve $'\\xe9\\e[31m'", tmp_path, **STRANGE[strange])
    assert wrong.returncode == 2
    assert "\x1b" not in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_shell_may_ask_for_completions(tmp_path: Path) -> None:
    done = shell(
        "depthgauge", tmp_path, _DEPTHGAUGE_COMPLETE="bash_complete", COMP_WORDS="depthgauge re", COMP_CWORD="1"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "report" in done.stdout


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    line = "mkdir gone; cd gone; rmdir ../gone; "
    for words in ("list", "run", "report x", "profile mlp", "bench", "bench compare a b", "bench ab pass pass"):
        done = shell(f"{line}depthgauge {words}", tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("depthgauge: the current directory cannot be used (No such file")
    assert shell(f"{line}depthgauge --help", tmp_path).returncode == 0


LONG = "a" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("report", LONG), ("list", "--studies", LONG), ("list", "--studies", f"{LONG}.py"),
        ("list", "--studies", f"x/{LONG}"),
        ("run", LONG), ("run", "--studies", LONG), ("run", "walk", "--studies", WALK, "--workers", "0", "--out", LONG),
        ("run", "--model", LONG), ("run", "--model", f"{LONG}:{LONG}"), ("run", "--preset", LONG),
        ("run", "--device", LONG),
        ("profile", LONG), ("profile", f"{LONG}:b"), ("profile", "--out", LONG), ("profile", "--open", LONG),
        ("bench", "compare", LONG, LONG), ("bench", "ab", LONG, LONG), ("bench", "--save", LONG),
        ("bench", "--json", LONG),
        (LONG,), (f"--{LONG}",), ("run", f"--{LONG}"),
    ],
    ids=lambda words: " ".join(word.replace(LONG, "LONG") for word in words),
)  # fmt: skip
def test_names_of_300_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words, prog_name="depthgauge")
    assert result.exit_code in {1, 2, 5}, result.output
    assert result.stderr.splitlines()[-1].startswith("depthgauge: ")


# -- errors that end a command -----------------------------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Result:
    @main.command("fails")
    def fails() -> None:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(folder))
    try:
        return CliRunner().invoke(main, ["fails"], prog_name="depthgauge")
    finally:
        del main.commands["fails"]


@pytest.mark.parametrize(
    "error", [KeyError("x"), AssertionError(), UnprintableError(), RecursionError("deep"), GeneratorExit()]
)
def test_an_error_of_our_own_is_one_sentence_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    result = ended(error, monkeypatch, tmp_path)
    assert result.exit_code == 70
    (file,) = tmp_path.iterdir()
    (line,) = result.stderr.splitlines()
    assert line.startswith("depthgauge: this is an error of depthgauge's own (")
    assert type(error).__name__ in line
    assert line.endswith(f"; its traceback is in {file}: please report it with that file")
    assert "Traceback (most recent call last)" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_where_no_file_can_be_written_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended(KeyError("x"), monkeypatch, tmp_path / "nowhere")
    assert result.exit_code == 70
    assert "set TMPDIR to a folder that can be written" in result.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "x/y"), "x/y cannot be used: Permission denied"),
        (OSError(28, "No space left on device"), "the output cannot be written: the disk is full; make room"),
        (MemoryError(), "there is not enough memory: use fewer --workers"),
        (SystemExit(0), "code that was run ended the program by sys.exit(0)"),
        (SystemExit("text"), "code that was run ended the program by sys.exit('text')"),
        (click.ClickException("two\nlines \x1b[31m"), "two lines \\x1b[31m"),
    ],
)
def test_errors_that_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    result = ended(error, monkeypatch, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith(f"depthgauge: {told}")
    assert not list(tmp_path.iterdir())


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    assert output.sentence("a\n  b\tc\r\x07") == "a b c \\x07"
    assert len(output.sentence("x" * 10_000)) == 2000


def test_codes_are_told_apart_and_documented() -> None:
    codes = {0, 1, 2, SLOWER, INCONCLUSIVE, NOTHING, 130, 143, errors.BUG}
    assert len(codes) == 9
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes
