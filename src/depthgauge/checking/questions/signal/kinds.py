"""What the question of the signal may find."""

from __future__ import annotations

from depthgauge.checking.answers import Kind

KINDS = {
    "other_model": Kind("fault", "the optimizer holds no parameter of the model: it was built over another one, or a copy"),
    "stale_parameters": Kind(
        "fault", "the optimizer holds tensors that the model no longer has, and lacks others that the model has"
    ),
    "no_gradient": Kind(
        "fault", "parameters that the optimizer holds get no gradient, in no batch that was looked at and neither after"
        " the first steps: their module is not called, its output is cut off, or all that passes it is zero"
    ),
    "unregistered": Kind(
        "fault", "a tensor that trains is in the graph of the loss, and neither the model's parameters nor the optimizer"
        " have it: it lies in a plain list, or is no nn.Parameter"
    ),
    "not_in_optimizer": Kind("fault", "parameters that get a gradient, and that no group of the optimizer holds"),
    "frozen_within": Kind(
        "fault", "a frozen layer, as torch drew it, between layers that train: a frozen part is sound at an end, or where"
        " it was trained"
    ),
    "tied_by_copy": Kind(
        "fault", "an embedding and an output layer begin with the same bits in two tensors: they part with the first step"
    ),
    "equal_units": Kind(
        "fault", "all units of a layer have equal weights, and still have after steps: they stay one unit"
    ),
    "nonfinite": Kind("fault", "an activation, a gradient or the loss is not finite: the text says where it began"),
    "vanishing": Kind(
        "fault", "the gradient at the first layers is a small part of that at the last ones, and another initialization,"
        " tried, lets the training get further in the same steps; or it is below 1e-5 of it"
    ),
    "exploding": Kind(
        "fault", "signal or gradient grow with depth, and another initialization, tried, lets the training get further in"
        " the same steps"
    ),
    "scale": Kind(
        "fault", "one layer's or all layers' weights are of a size with which the training gets less far than with that of"
        " an initialization that was tried, in the same steps"
    ),
    "collapse": Kind(
        "fault", "what the last layer gets is the same for all examples, to less than 1e-4 of it, while the inputs differ"
    ),
    "dead_units": Kind(
        "fault", "nearly all units of a layer are zero for all examples of all batches that were looked at"
    ),
    "saturated_units": Kind(
        "fault", "nearly all values of a layer lie where its activation's derivative is below a hundredth of the largest"
    ),
    "frozen": Kind("property", "parameters that do not train, as fine-tuning has them"),
    "unused_by_package": Kind("property", "a module of an installed package has parameters that this loss does not use"),
    "left_out": Kind("property", "parameters below those that the optimizer holds are in no group of it, and not frozen"),
    "idle_expert": Kind("property", "of modules of which each batch uses some, one was not used in any that was seen"),
    "uneven": Kind(
        "property", "the gradient at the first layers is far from that at the last ones, and no initialization that was"
        " tried gets further"
    ),
}  # fmt: skip
