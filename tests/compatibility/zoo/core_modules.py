"""Kinds of modules that PyTorch itself has."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, rnn

from zoo.entry import Case, Entry, case, squares


def perceptron() -> nn.Sequential:
    """Three linear layers, tanh between them."""
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def mlp() -> Case:
    return case(perceptron(), squares(4, 8))


def convolutional() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    return case(model, squares(4, 1, 8, 8))


def convolutions_1d_3d() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.back = nn.Conv1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 3)
            self.volume = nn.Conv3d(1, 2, 2, groups=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.back(self.line(x)).mean() + self.volume(x.reshape(-1, 1, 2, 2, 4)).square().mean()

    return case(Model(), squares(2, 2, 8))


def channels_last() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    return case(model, lambda m: m(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)).square().mean())


class Packed(nn.Module):
    """A recurrent layer over sequences of different lengths."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.recurrent, self.head = kind(4, 6, batch_first=True, **settings), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True)
        out, _ = self.recurrent(packed)
        return self.head(rnn.pad_packed_sequence(out, batch_first=True)[0])


def lstm() -> Case:
    model = Packed(nn.LSTM, num_layers=2)
    model(torch.randn(3, 5, 4))
    return case(model, squares(3, 5, 4))


def lstm_projected() -> Case:
    model = Packed(nn.LSTM, bidirectional=True, proj_size=3)
    model(torch.randn(3, 5, 4))
    return case(model, squares(3, 5, 4))


def gru() -> Case:
    model = Packed(nn.GRU, bidirectional=True)
    model(torch.randn(3, 5, 4))
    return case(model, squares(3, 5, 4))


class Cells(nn.Module):
    """Recurrent cells called once for each time step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(4, 6), nn.GRUCell(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, hidden = None, torch.zeros(len(x), 6)
        for step in x.unbind(1):
            state = self.first(step, state)
            hidden = self.second(state[0], hidden)
        return self.head(hidden)


def cells() -> Case:
    return case(Cells(), squares(3, 5, 4))


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return case(nn.TransformerEncoder(layer, 2), squares(2, 5, 8))


def sequence_to_sequence() -> Case:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    return case(model, lambda m: m(torch.randn(2, 5, 8), torch.randn(2, 3, 8)).square().mean())


class Attention(nn.Module):
    """Self-attention with its own output layer, by scaled dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inner(x).unflatten(-1, (3, 2, 4)).transpose(1, 3).unbind(2)
        return self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def attention() -> Case:
    return case(Attention(), squares(2, 5, 8))


def multihead() -> Case:
    model = nn.MultiheadAttention(8, 2, batch_first=True)

    def loss(m: nn.Module) -> Tensor:
        x = torch.randn(2, 5, 8)
        return m(x, x, x)[0].square().mean()

    return case(model, loss)


class Bags(nn.Module):
    """Embeddings of words and of bags of words."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.words, self.bags = nn.Embedding(20, 6, sparse=sparse), nn.EmbeddingBag(20, 6, sparse=sparse)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens).mean(1) + self.bags(tokens))


def bags() -> Case:
    return case(Bags(sparse=False), lambda m: m(torch.randint(0, 20, (4, 5))).square().mean())


def sparse_bags() -> Case:
    return case(Bags(sparse=True), lambda m: m(torch.randint(0, 20, (4, 5))).square().mean())


class Tied(nn.Module):
    """An embedding whose weight is that of the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


def tokens_loss(model: nn.Module) -> Tensor:
    """Cross-entropy of predicting tokens from themselves."""
    tokens = torch.randint(0, 12, (5, 7))
    return functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def tied() -> Case:
    return case(Tied(), tokens_loss)


def one_module_twice() -> Case:
    layer = nn.Linear(8, 8)
    return case(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 2)), squares(4, 8))


class Symmetric(nn.Module):
    """Makes a matrix symmetric."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.triu()


def parametrized() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return case(model, squares(4, 8))


def weight_norm() -> Case:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 16)), nn.Tanh(), parametrizations.weight_norm(nn.Linear(16, 2))
    )
    return case(model, squares(4, 8))


def old_weight_norm() -> Case:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 2))
    return case(model, squares(4, 8))


def spectral_norm() -> Case:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return case(model, squares(4, 1, 8, 8))


def orthogonal() -> Case:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 2))
    return case(model, squares(4, 8))


def pruned() -> Case:
    from torch.nn.utils import prune

    model = perceptron()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return case(model, squares(4, 8))


def lazy() -> Case:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    return case(model, squares(4, 1, 6, 6))


class Checkpointed(nn.Module):
    """Two blocks whose activations are computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant, self.first = reentrant, nn.Linear(8, 8)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.utils.checkpoint.checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)
        return x


def checkpointed() -> Case:
    return case(Checkpointed(reentrant=False), squares(4, 8))


def checkpointed_reentrant() -> Case:
    return case(Checkpointed(reentrant=True), squares(4, 8))


class Held(nn.Module):
    """Layers in a list and a dictionary, a weight of its own in a list of parameters, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.heads = nn.ModuleDict({"small": nn.Linear(8, 2), "large": nn.Linear(8, 5)})
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = torch.relu(layer(x)) * self.scale
        return {name: head(x) for name, head in self.heads.items()}


def held() -> Case:
    return case(Held(), lambda m: sum(value.square().mean() for value in m(torch.randn(4, 8)).values()))


class Experts(nn.Module):
    """Weights of its own, in one tensor and in a list, used without any submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 8) / 8)
        self.scales = nn.ParameterList(torch.ones(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return sum(torch.tanh(x @ weight) * scale for weight, scale in zip(self.weight, self.scales, strict=True))


def experts() -> Case:
    return case(nn.Sequential(nn.Linear(8, 8), Experts(), nn.Linear(8, 2)), squares(4, 8))


class Pair(NamedTuple):
    """A named tuple as an output."""

    mean: Tensor
    spread: Tensor | None


@dataclass
class Answer:
    """A dataclass as an output: unset fields, one that refers to itself, one that cannot be read."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    later: Tensor = field(init=False)
    parent: Any = None


class Outputs(nn.Module):
    """Hands on what its layer computes in one form of output."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first, self.second = form, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        a, b = self.first(x) * 2, self.second(x) * 2
        if self.form == "dict":
            return OrderedDict(first=a, more={"second": [b, None]}, number=3)
        if self.form == "named tuple":
            return Pair(a, b)
        if self.form == "dataclass":
            answer = Answer(a, (b,))
            answer.parent = answer
            return answer
        return a, (b, None, [b.detach()], "text")


class Reads(nn.Module):
    """Reads such an output."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.head = Outputs(form), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if isinstance(out, dict):
            return self.head(out["first"] + out["more"]["second"][0])
        if isinstance(out, Answer):
            return self.head(out.logits + out.hidden[0])
        return self.head(out[0] + (out[1] if isinstance(out, Pair) else out[1][0]))


def output(form: str) -> Any:
    return lambda: case(Reads(form), squares(4, 8))


class InPlace(nn.Module):
    """Changes what its submodules returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = self.act(y.add_(x).mul_(2))
        y = y.clone()
        y[:, :2] = 0
        return self.head(y)


def in_place() -> Case:
    return case(InPlace(), squares(4, 8))


class Square(torch.autograd.Function):
    """A function with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class OwnFunction(nn.Module):
    """Uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Square.apply(self.inner(x)))


def own_function() -> Case:
    return case(OwnFunction(), squares(4, 8))


class Spectral(nn.Module):
    """A complex weight in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.inner(x)) * self.weight)


def spectral() -> Case:
    return case(Spectral(), squares(4, 8))


def cast(dtype: torch.dtype) -> Any:
    return lambda: case(perceptron().to(dtype), lambda m: m(torch.randn(4, 8).to(dtype)).float().square().mean())


def nothing_finite() -> Case:
    model = perceptron()
    with torch.no_grad():
        model[2].weight.fill_(float("inf"))
    return case(model, squares(4, 8))


class Branches(nn.Module):
    """Layers that run at random, one that never runs, and one that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
        self.never, self.empty = nn.Linear(8, 8), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) if torch.rand(()) < 0.9 else self.empty(x)
        return x


def branches() -> Case:
    return case(Branches(), squares(4, 8))


def frozen() -> Case:
    model = perceptron()
    model[0].requires_grad_(requires_grad=False)
    model[2] = nn.Sequential(model[2], copy.deepcopy(model[2]))
    return case(model, squares(4, 8), optimizer=torch.optim.Adam(p for p in model.parameters() if p.requires_grad))


class NestedTensors(nn.Module):
    """Sequences of different lengths as one nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, parts: list[Tensor]) -> Tensor:
        nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
        return self.head(torch.tanh(self.inner(nested)))


def nested() -> Case:
    return case(NestedTensors(), lambda m: m([torch.randn(2, 8), torch.randn(5, 8)]).values().square().mean())


class SparseInput(nn.Module):
    """Multiplies a sparse adjacency matrix, as graph networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        adjacency = torch.eye(len(x)).to_sparse()
        return self.second(torch.relu(torch.sparse.mm(adjacency, self.first(x))))


def sparse_input() -> Case:
    return case(SparseInput(), squares(4, 8))


class Gates(nn.Module):
    """Expands its output without memory of its own, transposes, conjugates and slices it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.views, self.head = nn.Linear(8, 8), Views(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.views(self.inner(x)))


class Views(nn.Module):
    """A view that overlaps itself and does not start where its memory does."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None, 1::2].expand(-1, 3, -1).transpose(0, 1)


def views() -> Case:
    return case(Gates(), squares(4, 8))


def empty() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.head(self.inner(part)) for part in (x[:0], x)])

    return case(Model(), squares(4, 8))


class Returns(nn.Module):
    """A layer, what a module returns of its output in some form, and a layer after it is dense again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(8, 8), inner, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(y + dense(self.inner(y)).reshape(-1, 8).to(y.dtype))


def dense(x: Any) -> Tensor:
    """The ordinary tensor of any layout."""
    if getattr(x, "is_nested", False):
        return torch.nested.to_padded_tensor(x, 0.0)
    return x if x.layout is torch.strided else x.to_dense()


class Maps(nn.Module):
    """A function as a module."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.function](x)


FORMS: dict[str, Any] = {
    "float8": lambda x: x.detach().to(torch.float8_e4m3fn),
    "COO": lambda x: x.to_sparse(),
    "CSR": lambda x: x.detach().to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.as_nested_tensor([*x.detach()]),
    "quantized": lambda x: torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8).dequantize(),
    "negative bit": lambda x: torch.view_as_complex(x.reshape(-1, 2)).conj().imag.repeat_interleave(2),
}


def returned(form: str) -> Any:
    return lambda: case(Returns(Maps(form)), squares(4, 8))


class Position(nn.Module):
    """Returns its parameter, as modules of learned positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self) -> Tensor:
        return self.weight


class Positioned(nn.Module):
    """Adds it to tokens, and ends in a loss, which is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head, self.loss = (
            nn.Embedding(12, 8),
            Position(),
            nn.Linear(8, 12),
            nn.CrossEntropyLoss(),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.head(self.words(tokens) + self.places())
        return self.loss(scores.flatten(0, 1), tokens.flatten())


def positioned() -> Case:
    return case(Positioned(), lambda m: m(torch.randint(0, 12, (3, 5))))


class Masked(nn.Module):
    """Masked tensors, which wrap others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        from torch.masked import masked_tensor

        return self.head(masked_tensor(self.inner(x), x > 0).to_tensor(0.0))


def masked() -> Case:
    return case(Masked(), squares(4, 8))


class Unhooked(nn.Linear):
    """A layer whose `__call__` goes straight to `forward`."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


def unhooked() -> Case:
    return case(nn.Sequential(Unhooked(8, 8), nn.Tanh(), nn.Linear(8, 2)), squares(4, 8))


def fake_quantized() -> Case:
    """Quantization-aware training in eager mode."""
    import warnings

    from torch.ao import quantization

    model = nn.Sequential(
        quantization.QuantStub(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), quantization.DeQuantStub()
    )
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    with warnings.catch_warnings(action="ignore"):
        return case(quantization.prepare_qat(model.train()), squares(4, 8))


MODULES = (
    Entry("multilayer perceptron", mlp),
    Entry("convolutions, batch norm, pooling, in-place ReLU", convolutional),
    Entry("convolutions in one and three dimensions, transposed ones", convolutions_1d_3d),
    Entry("channels-last memory format", channels_last),
    Entry("LSTM, packed sequences", lstm),
    Entry("LSTM, bidirectional, with projections", lstm_projected),
    Entry("GRU, bidirectional, packed sequences", gru),
    Entry("recurrent cells in a Python loop", cells),
    Entry("attention by scaled dot products", attention),
    Entry("`MultiheadAttention`", multihead, expected="partly", why="`out_proj` is used by its weights alone"),
    Entry(
        "`TransformerEncoder`, with dropout", encoder, expected="partly", why="`out_proj` is used by its weights alone"
    ),
    Entry(
        "`Transformer`, encoder and decoder",
        sequence_to_sequence,
        expected="partly",
        why="`out_proj` is used by its weights alone",
    ),
    Entry("embeddings and bags of them", bags),
    Entry("embeddings with sparse gradients", sparse_bags),
    Entry("tied weights", tied),
    Entry("one module at two places", one_module_twice),
    Entry("a parametrization of one's own", parametrized),
    Entry("`parametrizations.weight_norm`", weight_norm),
    Entry("`nn.utils.weight_norm`, the older one", old_weight_norm),
    Entry("spectral norm", spectral_norm),
    Entry("orthogonal parametrization", orthogonal),
    Entry("pruned weights", pruned),
    Entry("lazy layers", lazy),
    Entry("activation checkpointing", checkpointed),
    Entry("activation checkpointing, reentrant", checkpointed_reentrant),
    Entry("`ModuleList`, `ModuleDict`, buffers", held),
    Entry("stacked experts and a `ParameterList`", experts),
    Entry("outputs: nested tuples", output("tuple")),
    Entry("outputs: nested dictionaries", output("dict")),
    Entry("outputs: named tuples", output("named tuple")),
    Entry("outputs: a dataclass with an unset field and a cycle", output("dataclass")),
    Entry("arithmetic in place on outputs", in_place),
    Entry("an autograd function of one's own", own_function),
    Entry("complex weights", spectral),
    Entry("float64", cast(torch.float64)),
    Entry("bfloat16", cast(torch.bfloat16)),
    Entry("float16", cast(torch.float16)),
    Entry("infinite weights", nothing_finite),
    Entry("layers that are skipped at random", branches),
    Entry("frozen layers", frozen),
    Entry("nested (jagged) tensors", nested),
    Entry("sparse matrices inside", sparse_input),
    Entry("views: expanded, sliced, transposed", views),
    Entry("empty batches", empty),
    Entry("a module that returns its parameter, one that returns a number", positioned),
    *(
        Entry(f"outputs: {name}", returned(form))
        for name, form in {
            "float8": "float8",
            "sparse, COO": "COO",
            "sparse, CSR": "CSR",
            "MKL-DNN's layout": "mkldnn",
            "nested, strided": "nested",
            "quantized": "quantized",
            "negated and conjugated views": "negative bit",
        }.items()
    ),
    Entry("masked tensors", masked),
    Entry("a layer whose `__call__` passes hooks by", unhooked, expected="partly", why="no hook runs"),
    Entry("quantization-aware training", fake_quantized, why="rows are of outputs before fake quantization, a hook"),
)
