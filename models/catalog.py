"""The catalog of models as plain data: neither this module nor one that lists the models imports torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType

from depthgauge.models.sizes import SIZES, Size


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: the model's name for `build`.
        factory: `module:name` of a function, whose keyword arguments are the model's parameters, or of a frozen
            dataclass, whose fields are, with a method `build`.
        source: the architecture's source.
        presets: name -> arguments. `published` is the factory's own defaults, the shape of the source; `small` trains
            on 28 x 28 images in seconds; `course` is the shape in the course notes, where it is another.
        fixed: arguments that make this model of its family.
    """

    name: str
    factory: str
    source: str
    presets: Mapping[str, Mapping[str, object]]
    fixed: Mapping[str, object] = field(default_factory=dict)

    @property
    def sizes(self) -> Mapping[str, Size]:
        """Preset -> parameters and operations; a table, not a computation."""
        return SIZES[self.name]

    @property
    def arguments(self) -> Mapping[str, str]:
        """Map each argument of the model to its default's source text, read without importing torch."""
        module, _, name = self.factory.partition(":")
        source = resources.files("depthgauge.models") / f"{module.rpartition('.')[2]}.py"
        spelled = _spelled(ast.parse(source.read_bytes()), name)
        return {name: default for name, default in spelled.items() if name not in self.fixed}


def _spelled(module: ast.Module, name: str) -> dict[str, str]:
    """Parameter -> default of a function's keyword arguments, or of a dataclass's fields, its bases' first."""
    node = next(n for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
    spelled: dict[str, str] = {}
    if isinstance(node, ast.FunctionDef):
        defaults = dict(zip((arg.arg for arg in node.args.kwonlyargs), node.args.kw_defaults, strict=True))
    else:
        for base in node.bases:
            spelled |= _spelled(module, ast.unparse(base))
        defaults = {ast.unparse(line.target): line.value for line in node.body if isinstance(line, ast.AnnAssign)}
    return spelled | {name: "" if default is None else ast.unparse(default) for name, default in defaults.items()}


_PUBLISHED: Mapping[str, object] = {}
_DIGIT: Mapping[str, object] = {"input_shape": (1, 28, 28), "classes": 10}
_COURSE: Mapping[str, object] = {"input_shape": (1, 224, 224), "classes": 10}


def _presets(
    small: Mapping[str, object], course: Mapping[str, object] | None = None
) -> Mapping[str, Mapping[str, object]]:
    presets = {"published": _PUBLISHED, "small": {**_DIGIT, **small}}
    return presets if course is None else {**presets, "course": {**_COURSE, **course}}


def _vgg(depth: int) -> Entry:
    return Entry(
        f"vgg{depth}",
        "depthgauge.models.vgg:vgg",
        "Simonyan and Zisserman 2015, table 1",
        _presets({"width": 6, "hidden": 64, "dropout": 0.0}, course={} if depth == 11 else None),
        fixed={"depth": depth},
    )


def _resnet(depth: int, width: int) -> Entry:
    return Entry(
        f"resnet{depth}",
        "depthgauge.models.resnet:ResNetSettings",
        "He, Zhang, Ren and Sun 2016, table 1",
        _presets({"width": width}),
        fixed={"depth": depth},
    )


_ALL = (
    Entry(
        "linear_regression",
        "depthgauge.models.linear:linear_regression",
        "least squares; two inputs as in the course",
        {"published": _PUBLISHED, "small": {"input_shape": (1, 28, 28)}},
    ),
    Entry(
        "softmax_regression",
        "depthgauge.models.linear:softmax_regression",
        "multinomial logistic regression; 28 x 28 images as in the course",
        _presets({}),
    ),
    Entry(
        "perceptron",
        "depthgauge.models.linear:perceptron",
        "Rosenblatt 1958; two inputs, as for XOR",
        _presets({}),
    ),
    Entry(
        "mlp",
        "depthgauge.models.mlp:MLPSettings",
        "Rumelhart, Hinton and Williams 1986; one hidden layer of 256 as in the course",
        _presets({"depth": 4, "width": 128}),
    ),
    Entry(
        "lenet5",
        "depthgauge.models.lenet:lenet5",
        "LeCun, Bottou, Bengio and Haffner 1998, as in the course",
        _presets({}),
    ),
    Entry(
        "alexnet",
        "depthgauge.models.alexnet:alexnet",
        "Krizhevsky, Sutskever and Hinton 2012, in one column (Krizhevsky 2014)",
        _presets(
            {"channels": (8, 24, 48, 32, 32), "stem": (5, 1, 2), "hidden": 128, "dropout": 0.0},
            course={"channels": (96, 256, 384, 384, 256), "stem": (11, 4, 1)},
        ),
    ),
    _vgg(11),
    _vgg(13),
    _vgg(16),
    _vgg(19),
    Entry(
        "nin",
        "depthgauge.models.nin:nin",
        "Lin, Chen and Yan 2014; ImageNet shape of the authors' model",
        _presets(
            {"channels": (16, 32, 64, 64), "stem": (5, 2, 3), "dropout": 0.0}, course={"channels": (96, 256, 384, 10)}
        ),
    ),
    Entry(
        "googlenet",
        "depthgauge.models.googlenet:googlenet",
        "Szegedy et al. 2015, table 1",
        _presets({"width": 0.125, "dropout": 0.0}, course={}),
    ),
    Entry(
        "plain_cnn",
        "depthgauge.models.plain:plain_cnn",
        "plain network for CIFAR in He, Zhang, Ren and Sun 2016, section 4.2",
        _presets({"depth": 10, "width": 8}),
    ),
    _resnet(18, 8),
    _resnet(34, 6),
    _resnet(50, 4),
    Entry(
        "resnext50_32x4d",
        "depthgauge.models.resnet:ResNeXtSettings",
        "Xie, Girshick, Dollar, Tu and He 2017, table 1",
        _presets({"width": 4, "groups": 2, "group_width": 4}),
        fixed={"depth": 50},
    ),
    Entry(
        "rnn",
        "depthgauge.models.recurrent:rnn",
        "Elman 1990; pixel by pixel with 100 units as in Le, Jaitly and Hinton 2015",
        _presets({"width": 64}),
    ),
    Entry(
        "lstm",
        "depthgauge.models.recurrent:lstm",
        "Hochreiter and Schmidhuber 1997; pixel by pixel with 100 units as in Le, Jaitly and Hinton 2015",
        _presets({"width": 64}),
    ),
    Entry(
        "transformer",
        "depthgauge.models.transformer:TransformerSettings",
        "GPT-2 (Radford et al. 2019), 124M",
        _presets({"vocabulary": None, "each_step": False, "depth": 4, "width": 32, "heads": 4, "fused": False}),
    ),
)

ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ALL})
