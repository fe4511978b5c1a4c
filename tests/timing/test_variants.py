"""Worker processes: expressions in one, revisions in one each."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from depthgauge import timing
from depthgauge.timing import variants
from depthgauge.timing.spending import differences
from depthgauge.timing.variants import VariantError, expressions, revisions


def compared(sitting, **settings):
    return timing.interleave(sitting, **{"budget": 20.0, "most": 8, **settings})


def test_each_variants_own_statement_is_timed():
    with expressions(["sum(numbers)", "sum(few)"], setup="numbers = range(400_000); few = range(4)") as sitting:
        done = compared(sitting, most=1)
    assert done.seconds.shape == (1, done.seconds.shape[1], 2, 3)
    assert (done.seconds > 0).all()
    assert done.medians[1] < done.medians[0]  # of 100,000 times the work


def test_setups_have_a_namespace_each_and_are_run_afresh(tmp_path):
    log = tmp_path / "log"
    setup = f"open({str(log)!r}, 'a').write('s'); assert 'mine' not in globals(); mine = 1"
    with expressions(["pass", "pass"], setup=setup) as sitting:
        done = compared(sitting, most=2)
    assert len(log.read_text()) == 3 * (1 + 1 + done.sittings)  # before all, warming up, then each sitting


def test_workers_have_the_threads_and_the_core(tmp_path):
    log = tmp_path / "log"
    told = "os.environ['OMP_NUM_THREADS'] + str(sorted(os.sched_getaffinity(0)))"
    code = f"import os; open({str(log)!r}, 'a').write({told})"
    with expressions(["pass", "pass"], setup=code):
        pass
    cores = list(variants.cores_for(1)) or sorted(os.sched_getaffinity(0))
    assert log.read_text().startswith(f"1{cores}")
    everything = len(os.sched_getaffinity(0))
    assert variants.cores_for(everything) == ()


def test_what_variants_print_does_not_mix_with_the_answers(capfd):
    with expressions(["print('hello')", "pass"]) as sitting:
        compared(sitting, most=1)
    assert "hello" not in capfd.readouterr().out


ENDED = "the process of the variants ended while it was timed"


@pytest.mark.parametrize(
    ("statement", "setup", "told"),
    [
        ("x.tanh()", "pass", "the statement of variant 'x.tanh()' raised NameError: name 'x' is not defined"),
        ("x ++", "pass", "the statement of variant 'x ++' raised SyntaxError: "),
        ("pass", "import sys; sys.exit(0)", "the setup of variant 'pass' raised SystemExit: 0"),
        ("exit()", "pass", "the statement of variant 'exit()' raised "),
        ("pass", "raise type('E', (OSError,), {'__str__': None})", "the setup of variant 'pass' raised "),
        ("pass", "1 / 0", "the setup of variant 'pass' raised ZeroDivisionError: "),
        ("import os; os._exit(3)", "pass", f"{ENDED} (exit code 3)"),
        ("import os; os.kill(os.getpid(), 9)", "pass", f"{ENDED} (signal 9)"),
    ],
)  # fmt: skip
def test_what_a_user_can_get_wrong(statement, setup, told):
    with pytest.raises(VariantError) as raised, expressions([statement, "pass"], setup=setup) as sitting:
        compared(sitting)
    assert str(raised.value).startswith(told)


def test_the_code_that_is_timed_may_close_its_own_stdin():
    with expressions(["pass", "pass"], setup="import sys; sys.stdin.close()") as sitting:
        assert compared(sitting, most=1).sittings == 1


# -- revisions ---------------------------------------------------------------------------------------------------------


def git(folder, *words):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two commits of a package that need a build to be found, and a change that is not committed."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    pytest.importorskip("setuptools", reason="needs setuptools to build with")
    root = tmp_path_factory.mktemp("repository")
    (root / "elsewhere").mkdir()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "paced"\nversion = "1"\n'
        '[tool.setuptools]\npackages = ["paced"]\n[tool.setuptools.package-dir]\npaced = "elsewhere"\n'
    )
    git(root.parent, "init", "-q", "-b", "main", str(root))
    for size in (400, 4000):
        (root / "elsewhere" / "__init__.py").write_text(f"NAME = 'rev{size}'\ndef work():\n    sum(range({size}))\n")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", f"{size}")
    (root / "elsewhere" / "__init__.py").write_text("NAME = 'dirty'\ndef work():\n    pass\n")
    return root


@pytest.mark.slow
def test_revisions_run_their_own_code(repository, tmp_path):
    log = tmp_path / "log"
    setup = f"from paced import NAME, work; import os; open({str(log)!r}, 'a').write(NAME + ' ')"
    with revisions(["HEAD~1", "HEAD", "."], statement="work()", setup=setup, repository=repository) as sitting:
        done = compared(sitting, budget=300.0, most=1)
    assert set(log.read_text().split()) == {"rev400", "rev4000", "dirty"}
    assert (done.sittings, done.seconds.shape[3]) == (1, 4)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert status.stdout.strip() == "M elsewhere/__init__.py"  # the repository is as it was
    assert len(list((repository / ".git").glob("worktrees/*"))) == 0


@pytest.mark.parametrize("name", ["nowhere", "--output=x", "HEAD~9"])
def test_a_revision_that_is_not_there(repository, name):
    with (
        pytest.raises(VariantError, match="there is no revision"),
        revisions(["HEAD", name], statement="pass", repository=repository),
    ):
        pass


@pytest.mark.slow
def test_a_setup_that_raises_in_every_revision_is_told_once(repository, capfd):
    with (
        pytest.raises(VariantError, match="the setup of variant 'HEAD' raised ModuleNotFoundError: "),
        revisions(["HEAD", "."], statement="pass", setup="import nosuch", repository=repository) as sitting,
    ):
        compared(sitting)
    assert capfd.readouterr().err == ""


def test_a_revision_with_a_link_that_leads_out_of_it(repository, tmp_path):
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(repository), str(copy))
    (copy / "passwords").symlink_to("/etc/passwd")
    git(copy, "add", "-A")
    git(copy, "commit", "-q", "-m", "link")
    with (
        pytest.raises(VariantError, match="'HEAD' cannot be exported: 'passwords' is a link to an absolute path"),
        revisions(["HEAD", "HEAD"], statement="pass", repository=copy),
    ):
        pass


def test_no_repository(tmp_path):
    with (
        pytest.raises(VariantError, match="revisions need a git repository: "),
        revisions(["HEAD", "."], statement="pass", repository=tmp_path),
    ):
        pass


def test_a_revision_that_cannot_be_installed(repository, tmp_path):
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(repository), str(copy))
    (copy / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'nothing_here'\n")
    git(copy, "commit", "-q", "-a", "-m", "broken")
    with (
        pytest.raises(VariantError, match="revision 'HEAD' cannot be installed: "),
        revisions(["HEAD", "HEAD~1"], statement="pass", repository=copy),
    ):
        pass


def test_why_by_operator_and_by_function():
    setup = "import torch; x = torch.randn(300, 300)\ndef mine(): return sum(range(30_000))"
    with expressions(["x @ x", "x.tanh()", "mine()"], setup=setup, device="cpu") as sitting, sitting(0) as slots:
        product, activation, python = (slot.why() for slot in (slots[0], *slots[2:]))
    assert (product.by, activation.by, python.by) == ("operator", "operator", "function")
    assert max(product.parts, key=lambda name: product.parts[name][1]) == "aten::mm"
    assert product.parts["aten::mm"][0] == activation.parts["aten::tanh"][0] == 1  # calls
    assert "nothing computes" in product.parts
    name = max(python.parts, key=lambda name: python.parts[name][1])
    assert "sum" in name
    assert product.seconds > 0
    parts = differences([product, activation])
    assert parts[0].largest == max(part.largest for part in parts) > 0
    assert {part.name for part in parts} == {*product.parts, *activation.parts}


def test_a_device_is_the_default_one_and_a_name(tmp_path):
    log = tmp_path / "log"
    code = f"import torch; open({str(log)!r}, 'a').write(f'{{device}} {{torch.ones(1).device}} ')"
    with expressions(["pass", "pass"], setup=code, device="meta"):
        pass
    assert set(log.read_text().split()) == {"meta"}
