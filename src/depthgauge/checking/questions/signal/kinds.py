"""Kinds of findings of the question of the signal."""

from __future__ import annotations

from depthgauge.checking.answers import Kind
from depthgauge.checking.questions.signal import turned, unloaded

KINDS = {
    "other_model": Kind(
        "fault",
        "the optimizer holds no parameter of the model: it was built over another one, or a copy",
    ),
    "stale_parameters": Kind(
        "fault",
        "the optimizer holds tensors that the model no longer has, and lacks others that the model has",
    ),
    "no_gradient": Kind(
        "fault",
        "parameters that the optimizer holds get no gradient, in no batch that was looked at and neither "
        "after the first steps: their module is not called, its output is cut off, or all that passes it is "
        "zero",
    ),
    "unregistered": Kind(
        "fault",
        "a tensor that trains is in the graph of the loss, and neither the model's parameters nor the "
        "optimizer have it: it lies in a plain list, is no nn.Parameter, or is made anew in each pass",
    ),
    "not_in_optimizer": Kind(
        "fault",
        "parameters that get a gradient, and that no group of the optimizer holds",
    ),
    "frozen_layer": Kind(
        "fault",
        "a frozen layer with the weights of a new one, between layers that train, alone among four or more, or a "
        "head, or several heads side by side, or a head behind frozen layers that have all learnt, or frozen with "
        "another module with whose name its own begins: a frozen part is sound where it was trained, is most of the "
        "model, has an adapter around it, or is a table of vectors",
    ),
    "never_loaded": Kind(
        "fault",
        "a frozen part before all that trains, and whose output it gets, has the numbers that it was built with: all "
        "its weights are independent draws (moments, sizes of rows and columns, largest singular value), its norms' "
        f"scales 1 and shifts 0; {unloaded.OF_A_PACKAGE} weights or more of an installed package's modules, "
        f"{unloaded.WITH_NORMS} beside norms, {unloaded.ALONE} alone, as a random projection is no fault",
    ),
    "tied_by_copy": Kind(
        "fault",
        "an embedding and an output layer begin with the same bits in two tensors: they part with the first step; or "
        "two tables do, or one is a multiple of the other or has a few rows more, and their numbers are new draws",
    ),
    "copied_towers": Kind(
        "fault",
        "two modules begin with the same new weights in two sets of tensors, both train, and each gets a tensor of the "
        "batch of the same shape, with other numbers: a copy where one module was to be used twice",
    ),
    "examples_alike": Kind(
        "fault",
        "a quarter of the examples or more, and not all, have bit for bit the same output, the same ones with other "
        "weights, although their inputs all differ",
    ),
    "equal_units": Kind(
        "fault",
        "all units of a layer have equal weights, and still have after steps: they stay one unit; or two layers begin "
        "with the same weights and still have them after steps that changed them: they stay one layer",
    ),
    "one_layer": Kind(
        "fault",
        "three places or more of a list of layers hold one and the same layer ([layer] * n): they train as one",
    ),
    "wrong_axis": Kind(
        "fault",
        "the weights of an attention add up to one along another axis than that along which the values are added",
    ),
    "masked_by_zero": Kind(
        "fault",
        "a softmax gets rows that end with zeros, from each row's own place on or by the lengths of sequences: a mask"
        " that multiplies scores, where it is to set them to -inf",
    ),
    "softmax_twice": Kind(
        "fault",
        "what goes into a softmax are rows above 0 that add up to one, and are not all alike: another softmax's",
    ),
    "cut_state": Kind(
        "fault",
        "a recurrent cell, a step of a sequence a call, gets its own last state without its gradient each time; or "
        "what a pass cuts out of its graph comes of what it has cut out before, three times in a row or more, and with "
        "the gradient let through, tried, the same steps bring the loss down four times as far",
    ),
    "nonfinite": Kind(
        "fault",
        "an activation, a gradient or the loss is not finite: the text says where it began",
    ),
    "vanishing": Kind(
        "fault",
        "the gradient at the first weight layers is small against that at the last, and from another "
        "initialization, tried, the same steps bring the loss down 20 times as far, and four times as many do not "
        "go half that way where the ratio is above 0.001; or it is below float32's epsilon of it and the loss does not "
        "fall; or it fades by degrees to less than 1e-5 of it, and still has after steps, or the signal fades by "
        "degrees as far, and another initialization, tried, leaves less than half the loss after the same steps",
    ),
    "exploding": Kind(
        "fault",
        "the gradient at the first weight layers is large against that at the last, with the same conditions; or a "
        "recurrent state grows 100 times over a sequence; or five blocks or more hand on 1.5 times what they get or "
        "more, 100 times together, and where they hand it on once, tried, the same steps bring the loss down twice as "
        "far",
    ),
    "scale": Kind(
        "fault",
        "the weights of one layer or of all, embeddings among them, are so large or small that from another "
        "initialization, tried, the same steps bring the loss down 20 times as far; or the loss of a classification "
        "begins above 4 times that of scores of unit size, is above it after the first steps, too, and from such "
        "scores, tried, the same steps bring it down 20 times as far",
    ),
    "collapse": Kind(
        "fault",
        "what the last layer gets is nearly the same for all examples while the inputs differ, and another "
        "initialization, tried, brings the loss down 20 times as far; or it is to less than 1e-4 of its size "
        "and the loss does not fall, or to less than 1e-4 after steps, too; or three blocks or more bring the places "
        "of a sequence to less than 0.01 of their size",
    ),
    "missing_skip": Kind(
        "fault",
        "five blocks or more hand on nothing of what they get (cosine below 0.3), and with x + f(x), tried, "
        "the same steps bring the loss down 20 times as far",
    ),
    "constant_output": Kind(
        "fault",
        "a layer's or a normalization's output is the same for all examples (to 1e-5) where its input differs, and "
        "still is after steps; its weights are not all zero",
    ),
    "drowned": Kind(
        "fault",
        "what all examples share, such as positions, is added to what differs between them before any attention, and "
        "is 300 times as large",
    ),
    "unused_rows": Kind(
        "fault",
        "columns of categories look up the same rows of an embedding that has rows for each, or its first quarter or "
        "more is never looked up and all the rest is: an offset is missing, or too many",
    ),
    "unused_backward": Kind(
        "fault",
        "a module of the user's own, without weights, defines a method backward, and its forward hands on what it gets "
        "or cuts its gradient off: autograd calls the backward of a torch.autograd.Function alone",
    ),
    "reversed_gradient": Kind(
        "fault",
        "along the gradient of a part the loss falls as fast as it should rise: a function of the user's own has "
        "turned its sign",
    ),
    "dead_units": Kind(
        "fault",
        "90 % or more of a layer's units are zero for all examples of all batches that were looked at; chance "
        "kills half of a narrow layer's at most",
    ),
    "saturated_units": Kind(
        "fault",
        "90 % or more of a layer's values lie where its activation's derivative is below a hundredth of the largest; "
        "or 80 % of those of three with two ends (tanh, sigmoid, hardtanh, hardsigmoid) lie there, at the start and "
        "after steps, and from another initialization, tried, the same steps bring the loss down four times as far; "
        "or half of a new model's rows of attention give one place 0.99",
    ),
    "dropped_for_kept": Kind(
        "fault",
        f"dropout rates are above {turned.HALF}, and with 1 minus each, tried, {turned.STEPS} steps lower the loss of "
        f"{turned.BATCHES} batches, in evaluation mode, {1 / turned.SLOW:.0f} times as far"
        f" ({1 / turned.SLOWER:.2g} times, of rates from {turned.MOST} on): the share that was to be kept is dropped",
    ),
    "frozen": Kind(
        "property",
        "parameters that do not train, as fine-tuning has them",
    ),
    "unused_by_package": Kind(
        "property",
        "a module of an installed package has parameters that this loss does not use",
    ),
    "unused_bias": Kind(
        "property",
        "a bias is in no loss, while the weight beside it is used by itself",
    ),
    "left_out": Kind(
        "property",
        "parameters below those that the optimizer holds are in no group of it, and not frozen",
    ),
    "idle_expert": Kind(
        "property",
        "of modules of which each batch uses some, one was not used in any that was seen",
    ),
    "initialization": Kind(
        "opportunity",
        "from another initialization, tried, the same first steps bring the loss down four times as far",
    ),
    "way_around": Kind(
        "opportunity",
        "with x + f(x) in blocks that have no way around them, tried, the same first steps bring the loss "
        "down four times as far",
    ),
    "uneven": Kind(
        "property",
        "the gradient at the first layers is far from that at the last, and no remedy that was tried gets further",
    ),
}
