"""A probe that does harm is no pass: the contract finds each harm that is planted."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from zoo import contract
from zoo.catalog import CORE
from zoo.core_modules import mlp
from zoo.entry import Entry

from depthgauge import probe

ENTRY = Entry("multilayer perceptron", mlp)


def change_a_weight(model):
    with torch.no_grad():
        model[2].weight[0, 0] += 1e-6


def leave_a_hook(model):
    model[0].register_forward_hook(lambda *_: None)


def replace_a_method(model):
    model[0].forward = model[0].forward


def leave_a_parameter_hook(model):
    model[0].weight.register_hook(lambda gradient: gradient)


def draw_a_number(_model):
    torch.rand(())


def halve_the_output(model):
    model.register_forward_hook(lambda _module, _arguments, output: output / 2)


def change_a_gradient(model):
    model[4].weight.register_hook(lambda gradient: gradient * 1.001)


def forbid_copies(model):
    model.lock = (each for each in ())  # a generator can neither be copied nor pickled


def fail(_model):
    raise RuntimeError("the probe's own")


HARMS = {
    change_a_weight: "weights change",
    leave_a_hook: "something is left at module 0",
    replace_a_method: "something is left at module 0",
    leave_a_parameter_hook: "something is left at parameter 0.weight",
    draw_a_number: "random numbers are drawn",
    halve_the_output: "losses change",
    change_a_gradient: "weights change",
    forbid_copies: "copies end otherwise",
    fail: "raises RuntimeError: the probe's own",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_planted_harm_is_found(harm, monkeypatch):
    @contextmanager
    def harmful(model, **settings):
        with track(model, **settings) as record:
            harm(model)
            yield record

    track = probe.track
    monkeypatch.setattr(probe, "track", harmful)
    outcome = contract.judge(ENTRY)
    assert outcome.result == "fails"
    assert any(why.startswith(HARMS[harm]) for why in outcome.why), outcome.why


def test_rows_of_other_tensors_are_found(monkeypatch):
    """As if the first layer's rows were told of the last one."""
    honest = probe.Record.to_frame

    def mixed(record):
        frame = honest(record)
        return frame.assign(layer=frame.layer.replace({"0": "4", "4": "0"}))

    monkeypatch.setattr(probe.Record, "to_frame", mixed)
    assert contract.judge(ENTRY).result == "fails"


def test_a_layer_that_is_neither_seen_nor_told_is_found(monkeypatch):
    monkeypatch.setattr(probe.Record, "unread", ())
    unhooked = next(entry for entry in CORE if "`__call__`" in entry.name)
    assert contract.judge(unhooked).why == ("says nothing of '0', not seen",)


def test_an_honest_probe_passes():
    outcome = contract.judge(ENTRY)
    assert (outcome.result, outcome.why, outcome.seen) == ("pass", (), 3)
