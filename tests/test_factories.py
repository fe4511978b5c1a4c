"""A run on one model: of ours by name, or made by a user's own factory, in a project outside the repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from depthgauge import code, models, running, store
from depthgauge.cli import main
from depthgauge.cli.run import default_directory
from depthgauge.factories import Target, TargetError, is_factory, resolve, source
from depthgauge.request import Request
from depthgauge.restriction import restrict
from depthgauge.study import Study
from depthgauge.verdict import Claim

STUDIES = Path(__file__).parent / "engine_studies"
CHECKOUT = Path(__file__).parents[1]
INSIDE, WALK = str(STUDIES / "inside.py"), str(STUDIES / "walk.py")

PROJECT = {
    "models/__init__.py": "",
    "models/parts.py": "from torch import nn\n\nHIDDEN = 8\nACTIVATIONS = {'relu': nn.ReLU, 'tanh': nn.Tanh}\n",
    "models/nets.py": """
        from torch import nn
        from .parts import ACTIVATIONS, HIDDEN

        class Net(nn.Module):
            def __init__(self, hidden=HIDDEN, classes=3):
                super().__init__()
                self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, classes))

            def forward(self, x):
                return self.body(x)

        def make(activation="relu"):
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), ACTIVATIONS[activation](), nn.Linear(8, 2))
    """,
    "elsewhere.py": "import os\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    # `python -m pytest` puts the checkout first, with a `models` of its own.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder) != CHECKOUT])
    before = set(sys.modules)
    code._KNOWN.clear()
    yield tmp_path
    code._KNOWN.clear()
    for name in sys.modules.keys() - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_spec_is_a_name_or_a_factory():
    assert not is_factory("resnet18")
    assert is_factory("package.module:make")
    found = models.target("resnet18")
    assert found == Target("resnet18", frozenset(models.entry("resnet18").arguments), None)
    assert found.takes("norm")
    assert not found.takes("depth")  # it is what makes the model of its family


def test_functions_classes_and_what_they_take(here):
    write(here, PROJECT)
    assert resolve("models.nets:make").parameters == {"activation"}
    assert resolve("models.nets:Net").parameters == {"hidden", "classes"}
    write(here, {"anything.py": "def make(**rest):\n    ...\n"})
    assert resolve("anything:make").parameters is None
    assert resolve("anything:make").takes("whatever")


def test_a_factory_is_given_what_it_has_and_no_more(here):
    write(here, PROJECT)
    net = models.build("models.nets:Net", hidden=5, classes=4, input_shape=(1, 28, 28), preset="small", seed=1)
    assert [tuple(p.shape) for p in net.parameters()] == [(5, 784), (5,), (4, 5), (4,)]
    assert models.arguments("models.nets:Net", classes=4, input_shape=(1, 28, 28)) == {"hidden": 8, "classes": 4}
    with pytest.raises(TypeError, match=r"^models\.nets:Net has no parameter 'norm'; it has hidden, classes$"):
        models.build("models.nets:Net", norm="batch")
    with pytest.raises(TargetError, match="does not say what it takes"):
        models.example("models.nets:Net")


def test_seed_and_initialization_are_those_of_every_model(here):
    write(here, PROJECT)
    weights = [next(models.build("models.nets:make", seed=seed).parameters()) for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    layer = nn.Sequential(*models.build("models.nets:make", init="orthogonal").children())[1]
    assert torch.allclose(layer.weight @ layer.weight.T, torch.eye(8), atol=1e-5)


def test_lazy_layers_have_their_weights_and_the_same_for_a_seed(here):
    write(
        here,
        {
            "lazy.py": """
                from torch import nn
                def make():
                    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
            """
        },
    )
    first, again, other = (models.build("lazy:make", input_shape=(1, 2, 2), seed=seed) for seed in (1, 1, 2))
    assert first.training
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)
    assert torch.equal(first[2].running_mean, torch.zeros(4))
    assert models.target("lazy:make").parameters == frozenset()
    with pytest.raises(TargetError, match=r"lazy:make has lazy layers, whose sizes follow from an input_shape"):
        models.build("lazy:make")


def test_a_factory_with_a_generator_of_its_own_gets_the_seed(here):
    write(
        here,
        {
            "seeded.py": """
                import torch
                def make(seed=0):
                    net = torch.nn.Linear(2, 2)
                    with torch.no_grad():
                        net.weight.normal_(generator=torch.Generator().manual_seed(seed))
                    return net
            """
        },
    )
    first, second = (models.build("seeded:make", seed=seed).weight for seed in (1, 2))
    assert not torch.equal(first, second)


WRONG = {
    "resnet81": r"there is no model 'resnet81'; did you mean 'resnet18'\? \(name your own model by package\.module",
    "zzz": r"there is no model 'zzz'; there is linear_regression, ",
    "odd.py:make": r"odd\.py:make names a file, where the module is wanted: odd:make",
    "./odd.py:make": r"\./odd\.py:make names a file, where the module is wanted: odd:make",
    "sub/odd.py:make": r"sub/odd\.py:make names a file, where the module is wanted: sub\.odd:make",
    "/elsewhere/odd.py:make": r"/elsewhere/odd\.py:make names a file, where the module is wanted: odd:make",
    "odd.py": r"odd\.py names a file, where the module is wanted: odd:factory",
    "odd": r"there is no model 'odd', but a file odd\.py: name what makes the model in it, odd:NAME",
    "a/b:make": r"'a/b:make' is not a package\.module:factory, such as",
    "nets:": r"'nets:' is not a package\.module:factory",
    "nowhere.nets:make": r"there is no module 'nowhere' for nowhere\.nets:make, neither installed nor in /",
    "bad:missing_import": r"bad cannot be imported: No module named 'not_installed'",
    "worse:make": r"worse cannot be imported: ZeroDivisionError: ",
    "odd:mak": r"odd \(.*odd\.py\) has no 'mak'; did you mean 'make'\?",
    "odd:NUMBERS": r"odd \(.*odd\.py\) has no 'NUMBERS'$",
    "odd:NUMBER": r"odd:NUMBER is of type int, which cannot be called to make a model",
    "odd:MADE": r"odd:MADE is a module instance; name its class, or a function that makes it",
    "odd:needs": r"odd:needs cannot be called without 'width': give it a default, or name a function that does",
    "odd:make": r"odd:make made a dict, where a torch\.nn\.Module or a Training was expected",
    "odd:raises": r"odd:raises raised RuntimeError when it was called: no luck \(in raises, odd\.py:6\)$",
    "odd:mute": r"odd:mute raised MuteError when it was called: its text cannot be shown",
    "odd:leaves": r"odd:leaves raised SystemExit when it was called: 0",
    "odd:later": r"odd:later made a coroutine, where a torch\.nn\.Module or a Training was expected",
    "__main__:make": r"is a different module in every process",
}


@pytest.mark.parametrize(("spec", "told"), WRONG.items())
def test_what_a_user_can_get_wrong_is_one_sentence_and_2(here, spec, told):
    write(
        here,
        {
            "bad.py": "import not_installed\n",
            "worse.py": "1 / 0\n",
            "odd.py": """
                import torch
                NUMBER, MADE = 3, torch.nn.Linear(1, 1)
                def make(): return {}
                def needs(width, classes): return torch.nn.Linear(width, classes)
                def raises(): raise RuntimeError("no luck")
                class MuteError(Exception):
                    def __str__(self): raise ZeroDivisionError
                def mute(): raise MuteError
                def leaves(): raise SystemExit(0)
                async def later(): pass
            """,
        },
    )
    with pytest.raises(TargetError, match=told):
        models.target(spec)
    done = CliRunner().invoke(main, ["run", "inside", "--studies", INSIDE, "--model", spec], prog_name="depthgauge")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (here / "runs").exists()


def test_its_code_is_what_it_imports_from_its_own_folder(here):
    write(here, PROJECT)

    def hashed():
        code._KNOWN.clear()
        return source("models.nets:make")

    first = hashed()
    write(here, {"elsewhere.py": "import sys\n"})
    assert hashed() == first
    write(here, {"models/parts.py": PROJECT["models/parts.py"] + "# changed\n"})
    second = hashed()
    assert second != first
    write(here, {"models/nets.py": PROJECT["models/nets.py"] + "        import elsewhere\n"})
    third = hashed()
    write(here, {"elsewhere.py": "import os\n"})
    assert len({first, second, third, hashed()}) == 4
    assert source("torch.nn:Linear") != source("numpy.linalg:norm")  # by distribution and version


def bits(directory):
    frame = store.read(directory).frame("inside")
    value = frame["value"].to_numpy().view(np.int64).tolist()
    return [frame["case"].tolist(), frame["metric"].tolist(), value]


@pytest.mark.slow
def test_a_project_with_models_of_its_own_runs_from_where_it_is(tmp_path):
    """As a user does it, on workers that must import the project by themselves; the same bits as in process."""
    write(tmp_path, PROJECT)
    words = [sys.executable, "-c", "from depthgauge.cli import main; main()", "run", "inside", "--studies", INSIDE]
    words += ["--model", "models.nets:make"]
    for more in (["--workers", "1"], ["--workers", "0", "--out", "alone"]):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
    assert bits(tmp_path / "runs/inside-quick-models.nets.make") == bits(tmp_path / "alone")
    frame = store.read(tmp_path / "alone").frame("inside")
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == 15
    assert frame["value"].nunique() == 15 - 5  # relu is its own activation


def run(target, out, **more):
    return running.run(
        "inside", "walk", out=out, request=Request(model=target), workers=0, sources=[INSIDE, WALK], **more
    )


def test_a_run_records_its_model_and_the_report_says_what_could_not_be_asked(here):
    write(here, PROJECT)
    command = ["run", "inside", "walk", "--studies", INSIDE, "--studies", WALK, "--workers", "0", "--out", "x"]
    done = CliRunner().invoke(main, [*command, "--model", "models.nets:Net"], prog_name="depthgauge")
    assert done.exit_code == 0, done.output
    told = json.loads((here / "x/report/findings.json").read_bytes())["studies"]
    verdicts = {verdict["id"]: verdict for study in told.values() for verdict in study["verdicts"]}
    assert {name: verdict["status"] for name, verdict in verdicts.items()} == {
        "inside/any": "inconclusive",
        "inside/activation": "not_applicable",
        "inside/own": "not_applicable",
        "walk/spread": "not_applicable",
    }
    assert "no parameter 'activation'" in verdicts["inside/activation"]["why"]
    assert "networks of its own" in verdicts["walk/spread"]["why"]
    assert {study["model"] for study in told.values()} == {"models.nets:Net"}
    page = (here / "x/report/inside.md").read_text()
    assert "models.nets:Net alone" in page
    stored = store.read("x")
    assert stored.run["request"]["inside"]["model"] == "models.nets:Net"
    assert "--model models.nets:Net" in stored.run["command"]
    for name in ("report.md", "index.html"):
        assert "--model models.nets:Net" in (here / "x/report" / name).read_text()
    again = CliRunner().invoke(main, ["report", "x"], prog_name="depthgauge")
    assert again.exit_code == 0, again.output


def test_nothing_to_run_is_a_sentence_and_2(here):
    words = ["run", "walk", "--studies", WALK, "--model", "mlp"]
    done = CliRunner().invoke(main, words, prog_name="depthgauge")
    assert done.exit_code == 2
    assert done.stderr == (
        "depthgauge: nothing can be run on mlp: walk: the study measures networks of its own,"
        " which no other model can replace\n"
    )
    assert not (here / "runs").exists()


def test_rows_of_a_factory_that_changed_are_never_mixed(here):
    write(here, PROJECT)
    first = run(models.target("models.nets:make"), "x")
    assert run(models.target("models.nets:make"), "x").ran == 0
    run(models.target("mlp"), "x")  # another model in between does not make it forgotten
    write(here, {"models/parts.py": PROJECT["models/parts.py"].replace("8", "9")})
    with pytest.raises(TargetError, match=r"models\.nets has changed since this process imported it: start a new one"):
        models.target("models.nets:make")
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:  # as in another process
        del sys.modules[name]
    with pytest.raises(store.StoreError, match=r"made by other code of models\.nets:make; use another --out, or --fr"):
        run(models.target("models.nets:make"), "x")
    fresh = run(models.target("models.nets:make"), "x", fresh=True)
    assert fresh.ran == first.ran


def test_the_default_directory_names_the_model():
    assert default_directory((), "quick", "cpu", Target("resnet18", None)) == Path("runs/all-quick-resnet18")
    assert default_directory(("a",), "full", "cuda", Target("a.b:c", None)) == Path("runs/a-full-a.b.c-cuda")


def test_the_pages_examples_are_what_it_says(here):
    page = (CHECKOUT / "docs" / "your-own-model.md").read_text(encoding="utf-8")
    factory, texts, regression, python, grid, build = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    write(here, {"my_project/nets.py": factory, "my_project/texts.py": texts, "my_project/regression.py": regression})
    tagger = models.build("my_project.texts:Tagger")
    assert tagger(tagger.example_input_array).shape == (16, 40, 7)
    assert models.training("my_project.regression:make").first()[0]["x"].shape == (64, 8)
    exec(python.partition("outcome")[0])
    mine = models.target("my_project.nets:make")
    imports, _, expression = grid.partition("\n\n")
    names: dict[str, object] = {}
    exec(imports, names)
    declared = eval(expression, names)
    claim = Claim("my_study/activation", "it matters")
    study = Study("my_study", "?", {"quick": (declared,)}, run=list, analyse=list, plot=list, claims=(claim,))
    [case, *_] = restrict(study, "quick", mine).grids[0].cases()
    assert case.given("activation", "depth") == {"activation": "relu"}
    built: dict[str, nn.Module] = {}
    exec(build, {"models": models, "case": case}, built)
    assert built["model"](torch.zeros(2, 1, 28, 28)).shape == (2, 10)
