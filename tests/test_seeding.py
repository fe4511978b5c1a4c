"""One seed serves many draws, and no two of them are the same numbers."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depthgauge
import depthgauge.models
import depthgauge.reports
import depthgauge.studies
from depthgauge import data, initialization, models, replicas, seeding, stats
from depthgauge.seeding import Purpose, generator

SEEDS = (0, 1, -1, 2**32, 2**63 - 1, 2**64 - 1, -(10**30))
CHECKOUT = Path(__file__).parent.parent
BELOW = ("depthgauge/models/", "depthgauge/reports/", "depthgauge/studies/")

# -- who makes a generator ---------------------------------------------------------------------------------------------

FOLDERS = (
    *(Path(package.__file__).parent for package in (depthgauge, depthgauge.models, depthgauge.reports)),
    Path(depthgauge.studies.__file__).parent,
    *(folder for folder in (CHECKOUT / "benchmarks", CHECKOUT / "docs" / "examples") if folder.is_dir()),
)
# What makes a generator, or seeds one.
MAKERS = frozenset(
    {
        "Generator", "MT19937", "PCG64", "PCG64DXSM", "Philox", "RandomState", "SFC64", "SeedSequence", "default_rng",
        "initial_seed", "manual_seed", "manual_seed_all", "rvs", "seed_all", "set_rng_state", "set_state",
    }
)  # fmt: skip
# Draws that come from PyTorch's global generator unless they are given one.
DRAWS = frozenset(
    {
        "bernoulli", "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
        "randn_like", "randperm",
    }
)  # fmt: skip
FILLS = frozenset(
    {
        "bernoulli_", "cauchy_", "exponential_", "geometric_", "kaiming_normal_", "kaiming_uniform_", "log_normal_",
        "normal_", "orthogonal_", "random_", "sparse_", "trunc_normal_", "uniform_", "xavier_normal_",
        "xavier_uniform_",
    }
)  # fmt: skip
# What keeps the state of a caller's global generators, and puts it back.
KEEPERS = frozenset(
    {"np.random.get_state", "np.random.set_state", "random.getstate", "random.setstate", "torch.set_rng_state"}
)
# Trainings as users write them: they draw globally, and are seeded.
AS_USERS_DO = ("benchmarks/fault_zoo/", "benchmarks/check_learning_rate.py", "benchmarks/test_watch.py")
ALLOWED = {
    ("models/recurrent.py", "nn.init.uniform_"): "as PyTorch's modules: from its global generator, seeded by `build`",
    (
        "depthgauge/checking/attributes.py",
        "each.manual_seed",
    ): "generators of a user's own, for two equal runs",
    **{
        (
            "depthgauge/checking/questions/reproducibility/reseeding.py",
            call,
        ): "sees whether a user's loss seeds by itself"
        for call in ("torch.manual_seed", "random.seed", "np.random.seed")
    },
    ("depthgauge/precision/noise.py", "each.set_state"): "rewinds what an operator drew before it is run once more",
    ("depthgauge/restoring.py", "generator.set_state"): "puts back a user's own generator",
    ("depthgauge/workload.py", "generator.set_state"): "puts back a loader's own generator",
}


def drawn(source: str) -> Iterator[str]:
    """What draws, or makes what draws, without a purpose: the calls, as they are spelled."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "default_generator":
            yield ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        spelled = ast.unparse(node.func)
        if spelled in KEEPERS:
            continue
        *owner, name = spelled.split(".")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        handed = "generator" in given and not (
            isinstance(given["generator"], ast.Constant) and given["generator"].value is None
        )
        library = owner[-1:] == ["random"] and owner != ["torch", "random"]
        unguided = (name in FILLS or (name in DRAWS and owner[:1] == ["torch"])) and not handed
        if name in MAKERS or library or name in ("Random", "SystemRandom") or "random_state" in given or unguided:
            yield spelled


def sources() -> Iterator[tuple[str, str]]:
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            name = name.removeprefix("depthgauge/") if name.startswith(BELOW) else name  # as a wheel installs them
            if name != "depthgauge/seeding.py" and not name.startswith(AS_USERS_DO):
                yield name, path.read_text(encoding="utf-8")


def test_nothing_draws_but_from_a_generator_with_a_purpose() -> None:
    found = {(name, call) for name, source in sources() for call in drawn(source)}
    assert found - set(ALLOWED) == set(), "seed these by depthgauge.seeding"
    assert set(ALLOWED) - found == set(), "exceptions that nothing needs any more"


@pytest.mark.parametrize(
    "code",
    [
        "torch.Generator()",
        "torch.Generator().manual_seed(seed)",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed(0)",
        "torch.default_generator.seed()",
        "Generator()",
        "torch.randn(3)",
        "torch.randperm(3, generator=None)",
        "x.normal_()",
        "nn.init.orthogonal_(x)",
        "np.random.default_rng(0)",
        "default_rng(0)",
        "np.random.rand()",
        "numpy.random.seed(0)",
        "random.shuffle(x)",
        "random.Random(0)",
        "Random(0)",
        "train_test_split(x, random_state=0)",
        "scipy.stats.norm.rvs(3)",
    ],
)
def test_the_search_sees(code: str) -> None:
    assert list(drawn(code))


@pytest.mark.parametrize(
    "code",
    [
        "def f(x: torch.Generator, y: np.random.Generator) -> random.Random: ...",
        "torch.randn(3, generator=seeding.generator(0, Purpose.INPUTS))",
        "x.normal_(generator=generator)",
        "torch.random.fork_rng(devices=[])",
        "generator(0, Purpose.INPUTS)",
        "np.random.set_state(before)",
    ],
)
def test_the_search_lets_pass(code: str) -> None:
    assert not list(drawn(code))


# -- streams -----------------------------------------------------------------------------------------------------------

WORDS = 2000


def windows(words: np.ndarray) -> np.ndarray:
    """Every two neighbouring words, 31 bits of each, as one: streams that overlap anywhere have one in common."""
    wide = words.astype(np.uint64) & np.uint64(2**31 - 1)
    return wide[:-1] << np.uint64(31) | wide[1:]


def of_torch(draw: torch.Generator) -> np.ndarray:
    return windows(words_of(draw))


def words_of(draw: torch.Generator) -> np.ndarray:
    """A word of the generator each, all bits but the highest."""
    return torch.empty(WORDS, dtype=torch.int32).random_(generator=draw).numpy()


def of_numpy(draw: np.random.Generator | np.random.RandomState) -> np.ndarray:
    return windows(np.frombuffer(draw.bytes(4 * WORDS), np.uint32))


def of_python(draw: random.Random) -> np.ndarray:
    return windows(np.array([draw.getrandbits(32) for _ in range(WORDS)]))


def all_differ(streams: list[np.ndarray]) -> bool:
    """By chance alone two of N windows of 62 bits agree once in 2^63 / N^2 times: here less than once in 10^7."""
    joined = np.concatenate(streams)
    return len(np.unique(joined)) == len(joined)


def test_windows_find_an_overlap_at_any_offset() -> None:
    one, other = generator(0, Purpose.DATA), generator(0, Purpose.DATA)
    torch.empty(777, dtype=torch.int32).random_(generator=other)
    assert not all_differ([of_torch(one), of_torch(other)])
    assert not all_differ([of_torch(torch.Generator().manual_seed(5)), of_numpy(np.random.RandomState(5))])


def test_no_two_purposes_share_a_stream() -> None:
    """Nor does one share any with what a user gets of the same seed in PyTorch, NumPy or Python."""
    streams = []
    for seed in SEEDS:
        for purpose in Purpose:
            streams += [of_torch(generator(seed, purpose)), of_numpy(seeding.numpy_generator(seed, purpose))]
            streams.append(of_python(seeding.python_generator(seed, purpose)))
    for seed in (0, 1, 2**32 - 1):  # of a seed torch keeps 32 bits, so that 2^32 is 0
        streams += [of_torch(torch.Generator().manual_seed(seed)), of_numpy(np.random.default_rng(seed))]
        streams.append(of_python(random.Random(seed)))
    assert all_differ(streams)


def test_keys_tell_draws_of_one_purpose_apart() -> None:
    keys = ((), ("a",), ("b",), ("a", "b"), ("a,b",), ("ab",), ('a", "b',), (1,), ("1",), (1, 2), (12,), ("",))
    assert all_differ([of_torch(generator(0, Purpose.DATA, *key)) for key in keys])


def test_global_generators_get_streams_of_their_own() -> None:
    with torch.random.fork_rng(devices=[]):
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - put back below
        try:
            seeding.seed_globals(0, Purpose.UNGUARDED, "chunk")
            streams = [
                of_torch(torch.default_generator),
                windows(np.frombuffer(np.random.bytes(4 * WORDS), np.uint32)),  # noqa: NPY002 - what is tested
                of_python(random._inst),  # type: ignore[attr-defined]  # the module's own
            ]
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002 - as above
    assert all_differ(streams)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_stream_is_a_mersenne_twister_from_a_hash(seed: int) -> None:
    """As the module says it, by hand, in NumPy: the derivation, and that PyTorch takes the state as it was meant."""
    spelled = json.dumps(["data", hex(seed), "linear", 3]).encode()
    words = np.frombuffer(hashlib.shake_256(spelled).digest(4 * 624), np.uint32)
    by_hand = np.random.RandomState()
    by_hand.set_state(("MT19937", words, 624))
    expected = np.frombuffer(by_hand.bytes(4 * WORDS), np.uint32)
    assert np.array_equal(words_of(generator(seed, Purpose.DATA, "linear", 3)), expected & (2**31 - 1))


def test_making_a_generator_touches_no_other() -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - untouched
    generator(0, Purpose.DATA).seed()
    seeding.numpy_generator(0, Purpose.DATA).random()
    seeding.python_generator(0, Purpose.DATA).random()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002 - as above


@pytest.mark.parametrize("seed", [1.5, None, "3", torch.tensor(0.5)])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(TypeError, match=r"^a seed is an integer, not "):
        generator(seed, Purpose.DATA)
    with pytest.raises(TypeError, match=r"^a seed is an integer, not "):
        models.build("mlp", preset="small", seed=seed)


def test_integers_of_every_kind_are_seeds() -> None:
    same = [generator(seed, Purpose.DATA).get_state() for seed in (3, np.int64(3), np.uint8(3), torch.tensor(3))]
    assert all(torch.equal(state, same[0]) for state in same)
    generator(10**5000, Purpose.DATA)


def test_a_purpose_is_one_of_those_declared() -> None:
    with pytest.raises(ValueError, match=r"^no purpose 'oder'; there is weights, modules, "):
        generator(0, "oder")
    assert torch.equal(generator(0, "order").get_state(), generator(0, Purpose.ORDER).get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_generator_of_a_device_is_seeded_with_the_cpus() -> None:
    with torch.random.fork_rng():
        pair = []
        for purpose in (Purpose.DROPOUT, Purpose.DROPOUT, Purpose.MODULES):
            seeding.seed_torch(0, purpose, device="cuda")
            pair.append(torch.rand(100, device="cuda").cpu())
    assert torch.equal(pair[0], pair[1])
    assert not torch.equal(pair[0], pair[2])


# -- what meets in public ----------------------------------------------------------------------------------------------

UNITS, EXAMPLES, SIZE = 64, 64, 256


def _linear(module: nn.Module) -> Tensor:
    return next(part for part in module.modules() if isinstance(part, nn.Linear)).weight.detach()


def _built(seed: int, init: str) -> Tensor:
    return _linear(models.build("mlp", input_shape=(SIZE,), width=UNITS, depth=1, classes=2, init=init, seed=seed))


def _applied(seed: int) -> Tensor:
    layer = nn.Linear(SIZE, UNITS)
    initialization.apply(layer, "he", seed=seed)
    return _linear(layer)


def _stacked(seed: int, scheme: Callable[[nn.Module, torch.Generator], None] | None) -> Tensor:
    return replicas.stack(nn.Linear(SIZE, UNITS), [seed], scheme).parameters["weight"][0]


def _teacher(seed: int) -> data.Dataset:
    return data.load("teacher", inputs=SIZE, width=UNITS, n=EXAMPLES, n_test=EXAMPLES, seed=seed)


def _global(seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(EXAMPLES, SIZE)


def _numpy(draw: np.random.Generator | np.random.RandomState) -> Tensor:
    return torch.from_numpy(draw.standard_normal((EXAMPLES, SIZE))).float()


# (UNITS, SIZE) of variance 1.
WEIGHTS: dict[str, Callable[[int], Tensor]] = {
    "initialization.apply": lambda seed: _applied(seed) * math.sqrt(SIZE / 2),
    "models.build, he": lambda seed: _built(seed, "he") * math.sqrt(SIZE / 2),
    "models.build, default": lambda seed: _built(seed, "default") * math.sqrt(3 * SIZE),
    "replicas.stack, he": lambda seed: _stacked(seed, initialization.scheme("he")) * math.sqrt(SIZE / 2),
    "replicas.stack, default": lambda seed: _stacked(seed, None) * math.sqrt(3 * SIZE),
    "a teacher's weights": lambda seed: _teacher(seed).truth["hidden"] * math.sqrt(SIZE),
}
# (EXAMPLES, SIZE) from N(0, 1).
VECTORS: dict[str, Callable[[int], Tensor]] = {
    "torch.manual_seed": _global,
    "torch.Generator": lambda seed: torch.randn(EXAMPLES, SIZE, generator=torch.Generator().manual_seed(seed)),
    "numpy's RandomState": lambda seed: _numpy(np.random.RandomState(seed)),
    "numpy's default_rng": lambda seed: _numpy(np.random.default_rng(seed)),
    "models.example": lambda seed: models.example("mlp", input_shape=(SIZE,), batch=EXAMPLES, seed=seed),
    "data, linear": lambda seed: data.load("linear", weights=(1.0,) * SIZE, n=EXAMPLES, seed=seed).train.x,
    "data, teacher": lambda seed: _teacher(seed).train.x,
    "data, teacher, test": lambda seed: _teacher(seed).test.x,
    "cotangent": lambda seed: torch.randn(EXAMPLES, SIZE, generator=generator(seed, Purpose.COTANGENT)),
    "a bootstrap's generator": lambda seed: _numpy(seeding.numpy_generator(seed, Purpose.RESAMPLES)),
}


def spread(units: int) -> float:
    """Standard deviation of the mean square of x w / sqrt(n), B examples of N(0, 1) by M independent units.

    Given the units it is the mean over the examples of a quadratic form in A = w^T w / M, over n:
    Var = E[2 tr(A^2)] / (B n^2) + Var(tr A) / n^2. For normal weights E tr(A^2) = n + n (n + 1) / M, and
    Var(tr A) = 2 n / M; for uniform ones both are less.
    """
    forms = 2 * (SIZE + SIZE * (SIZE + 1) / units) / (EXAMPLES * SIZE**2)
    return math.sqrt(forms + 2 / (units * SIZE))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_meets_in_a_layer_is_independent(weights: str) -> None:
    """Second moment 1 of its outputs with every seed, within 6.5 standard deviations."""
    for seed, vectors in itertools.product(range(10), VECTORS):
        w, x = WEIGHTS[weights](seed), VECTORS[vectors](seed)
        assert w.shape == (UNITS, SIZE)
        assert x.shape == (EXAMPLES, SIZE)
        moment = float((x @ w.T).square().mean()) / SIZE
        assert abs(moment - 1) < 6.5 * spread(UNITS), f"{weights} with {vectors}, seed {seed}: second moment {moment}"


def test_vectors_are_independent_of_each_other() -> None:
    """The same of every two sources of data; PyTorch's two are one, which shows that the test can fail."""
    for seed in range(10):
        drawn = {name: make(seed) for name, make in VECTORS.items()}
        for one, other in itertools.combinations(drawn, 2):
            apart = abs(float((drawn[one] @ drawn[other].T).square().mean()) / SIZE - 1) < 6.5 * spread(EXAMPLES)
            assert apart == ({one, other} != {"torch.manual_seed", "torch.Generator"}), f"{one}, {other}, {seed}"


def test_a_gradient_does_not_know_the_weights() -> None:
    """W^T c has the second moment 2 M / n that He's weights give it."""
    for seed in range(10):
        template = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)).double()
        stack = replicas.stack(template, [seed], initialization.scheme("he"))
        start = torch.randn(EXAMPLES, SIZE, generator=generator(seed, Purpose.COTANGENT), dtype=torch.float64)
        x = torch.randn(EXAMPLES, SIZE, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
        seen = replicas.signals(stack, x, start, overlap=False)
        assert abs(seen.backward[0, 0].mean() / 2 - 1) < 6.5 * spread(SIZE)
        assert abs(seen.forward[0, 0].mean() / 2 - 1) < 6.5 * spread(SIZE)


def test_what_modules_draw_is_not_what_the_scheme_draws() -> None:
    """A model's embedding stays PyTorch's own where a scheme sets linear maps alone: two streams of one seed."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(UNITS, SIZE), nn.Linear(SIZE, UNITS)

    def initialize(part: Both, draw: torch.Generator) -> None:
        part.table.reset_parameters()
        initialization.scheme("he")(part.linear, draw)

    for seed in range(10):
        stack = replicas.stack(Both(), [seed], initialize)
        table, weight = stack.parameters["table.weight"][0], stack.parameters["linear.weight"][0]
        moment = float((table @ weight.T).square().mean()) / 2
        assert abs(moment - 1) < 6.5 * spread(UNITS)


def test_dropout_and_order_are_not_those_that_the_seed_alone_gives() -> None:
    masks: list[Tensor] = []
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(SIZE, 2))
    x, y = torch.ones(EXAMPLES, SIZE), torch.zeros(EXAMPLES, dtype=torch.int64)
    stack = replicas.stack(model, [3])
    stack.template[0].register_forward_hook(lambda _module, _inputs, out: masks.append(out.detach() == 0))
    replicas.train(stack, x, y, replicas.SGD(0.1), batch=EXAMPLES, steps=1, strategy="loop")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert not torch.equal(masks[-1], nn.Dropout(0.5)(x) == 0)
        seeding.seed_torch(3, Purpose.DROPOUT)
        assert torch.equal(masks[-1], nn.Dropout(0.5)(x) == 0)
    order = replicas.order(3, EXAMPLES, 8, EXAMPLES // 8).flatten()
    assert not torch.equal(order, torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(3)))


def test_a_bootstrap_does_not_resample_by_the_numbers_of_its_sample() -> None:
    """Its resamples come from (seed, purpose): the same seed again gives the same interval, another another one."""
    x = np.random.default_rng(0).normal(size=25)
    one, again, other = (stats.mean(x, interval="bca", seed=seed) for seed in (0, 0, 2**70))
    assert (one.low, one.high) == (again.low, again.high) != (other.low, other.high)


def test_replicas_of_many_seeds_all_differ() -> None:
    """PyTorch's CPU generator keeps 32 bits of a seed, whose streams repeat after 77,000 of them."""
    near = [generator(seed, Purpose.WEIGHTS) for seed in (3, 3 + 2**32, 3 - 2**32, 3 + 2**64)]
    assert all_differ([of_torch(draw) for draw in near])
    weights = [_applied(seed) for seed in (3, 3 + 2**32)]
    assert not torch.equal(*weights)
