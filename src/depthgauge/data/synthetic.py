"""Synthetic data with a known best answer.

Each function draws training and test examples from one CPU generator, seeded by `seed`, and says in `Dataset.truth`
what made them. `data.load(name, **parameters)` is the way in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from depthgauge import seeding
from depthgauge.data import Dataset, Examples
from depthgauge.seeding import Purpose


def split(draw: Callable[[int], Examples], n: int, n_test: int) -> tuple[Examples, Examples]:
    """`n` examples to train and then `n_test` to test, as `draw` makes them.

    Raises:
        ValueError: one part would be empty.
    """
    if n < 1 or n_test < 1:
        raise ValueError(f"there must be examples to train and to test, not {n} and {n_test}")
    return draw(n), draw(n_test)


def linear(
    *,
    n: int = 1000,
    n_test: int = 1000,
    weights: Sequence[float] = (2.0, -3.4),
    bias: float = 4.2,
    noise: float = 0.01,
    seed: int = 0,
) -> Dataset:
    """`y = x w + b + noise e`, x and e from N(0, 1): (N, len(weights)) -> (N, 1).

    The best mean squared error is noise^2. `truth` has `weights` and `bias`.
    """
    generator = seeding.generator(seed, Purpose.DATA, "linear")
    w = torch.tensor(weights, dtype=torch.float32)

    def draw(count: int) -> Examples:
        x = torch.randn(count, len(w), generator=generator)
        y = x @ w + bias + noise * torch.randn(count, generator=generator)
        return Examples(x, y[:, None])

    train, test = split(draw, n, n_test)
    return Dataset("linear", train, test, classes=0, truth={"weights": w, "bias": torch.tensor(bias)})


def teacher(
    *, n: int = 1000, n_test: int = 1000, inputs: int = 20, width: int = 10, noise: float = 0.0, seed: int = 0
) -> Dataset:
    """`y = a tanh(W x) + noise e`, x and e from N(0, 1), a and W fixed and random: (N, inputs) -> (N, 1).

    W has entries from N(0, 1/inputs), a from N(0, 1/width). A student of the same shape can reach noise^2. `truth` has
    `hidden` (W) and `output` (a).
    """
    generator = seeding.generator(seed, Purpose.DATA, "teacher")
    hidden = torch.randn(width, inputs, generator=generator) / math.sqrt(inputs)
    output = torch.randn(width, generator=generator) / math.sqrt(width)

    def draw(count: int) -> Examples:
        x = torch.randn(count, inputs, generator=generator)
        y = torch.tanh(x @ hidden.T) @ output + noise * torch.randn(count, generator=generator)
        return Examples(x, y[:, None])

    train, test = split(draw, n, n_test)
    return Dataset("teacher", train, test, classes=0, truth={"hidden": hidden, "output": output})


def xor(*, n: int = 400, n_test: int = 400, noise: float = 0.0, seed: int = 0) -> Dataset:
    """Corners (+-1, +-1) plus N(0, noise^2) a coordinate; class 1 where the corner's signs differ: (N, 2) to (N,).

    A linear rule gets three corners of four at the best. `truth` has `best_accuracy`, of the signs' product: with
    q = Phi(-1/noise) the chance that one sign flips, it is q^2 + (1 - q)^2.
    """
    generator = seeding.generator(seed, Purpose.DATA, "xor")
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])

    def draw(count: int) -> Examples:
        corner = torch.arange(count) % 4
        x = corners[corner] + noise * torch.randn(count, 2, generator=generator)
        return Examples(x, ((corner == 1) | (corner == 2)).long())

    train, test = split(draw, n, n_test)
    flip = 0.5 * math.erfc(1 / (noise * math.sqrt(2))) if noise > 0 else 0.0
    return Dataset("xor", train, test, classes=2, truth={"best_accuracy": torch.tensor(flip**2 + (1 - flip) ** 2)})


def copy(
    *, n: int = 1000, n_test: int = 1000, symbols: int = 8, length: int = 5, delay: int = 20, seed: int = 0
) -> Dataset:
    """Read `length` symbols, wait, and repeat them at a mark: (N, T) tokens -> (N, T), T = delay + 2 length.

    Tokens 0 to symbols - 1 are symbols, `symbols` is the blank, `symbols` + 1 the mark, one step before the answer
    begins. The target is blank until then (Hochreiter and Schmidhuber 1997; Arjovsky, Shah and Bengio 2016). `truth`
    has `memoryless_loss`, the least cross-entropy a step without memory: length ln(symbols) / T.
    """
    if length < 1 or delay < 1 or symbols < 2:
        raise ValueError("the copy task has at least 2 symbols, a length of 1 and a delay of 1")
    generator = seeding.generator(seed, Purpose.DATA, "copy")
    steps = delay + 2 * length
    blank, mark = symbols, symbols + 1

    def draw(count: int) -> Examples:
        sequence = torch.randint(symbols, (count, length), generator=generator)
        x = torch.full((count, steps), blank)
        x[:, :length] = sequence
        x[:, -length - 1] = mark
        y = torch.full((count, steps), blank)
        y[:, -length:] = sequence
        return Examples(x, y)

    train, test = split(draw, n, n_test)
    return Dataset(
        "copy",
        train,
        test,
        classes=symbols + 1,
        vocabulary=symbols + 2,
        truth={"memoryless_loss": torch.tensor(length * math.log(symbols) / steps)},
    )


def parity(*, n: int = 1000, n_test: int = 1000, length: int = 20, each_step: bool = False, seed: int = 0) -> Dataset:
    """The parity of the bits so far: (N, length) tokens 0 and 1 -> (N,), the last step's answer.

    With `each_step` the answer of every step, (N, length). No step can be left out: any single bit decides.
    """
    generator = seeding.generator(seed, Purpose.DATA, "parity")

    def draw(count: int) -> Examples:
        x = torch.randint(2, (count, length), generator=generator)
        y = x.cumsum(1) % 2
        return Examples(x, y if each_step else y[:, -1])

    train, test = split(draw, n, n_test)
    return Dataset("parity", train, test, classes=2, vocabulary=2)


# fmt: off
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)
# fmt: on


def sums(*, n: int = 1000, n_test: int = 200, context: int = 64, seed: int = 0) -> Dataset:
    """Additions spelled out, `seven plus four is eleven. `, end to end: (N, context) characters -> those that follow.

    Both terms are uniform in zero to nine, so a sentence carries ln 100 nats and no more: the sum follows. `truth` has
    `entropy_rate`, ln 100 over the mean length of a sentence, the least loss a character for a reader who knows where
    sentences begin, and `alphabet`, the characters' code points in the order of their tokens. Training and test text
    are drawn apart; both show the same 100 sentences.
    """
    generator = seeding.generator(seed, Purpose.DATA, "sums")
    sentences = [f"{_NUMBERS[a]} plus {_NUMBERS[b]} is {_NUMBERS[a + b]}. " for a in range(10) for b in range(10)]
    alphabet = sorted(set("".join(sentences)))
    token = {character: number for number, character in enumerate(alphabet)}
    mean_length = sum(map(len, sentences)) / len(sentences)
    spelled = [torch.tensor([token[character] for character in sentence]) for sentence in sentences]
    shortest = min(map(len, sentences))

    def draw(count: int) -> Examples:
        characters = count * context + 1
        chosen = torch.randint(len(spelled), (math.ceil(characters / shortest),), generator=generator)
        text = torch.cat([spelled[number] for number in chosen.tolist()])
        return Examples(text[: characters - 1].reshape(count, context), text[1:characters].reshape(count, context))

    train, test = split(draw, n, n_test)
    truth = {
        "entropy_rate": torch.tensor(math.log(len(sentences)) / mean_length),
        "alphabet": torch.tensor([ord(character) for character in alphabet]),
    }
    return Dataset("sums", train, test, classes=len(alphabet), vocabulary=len(alphabet), truth=truth)
