"""Kinds of findings about learning rates; docs/check-calibration.md has where the thresholds come from."""

from __future__ import annotations

from depthgauge.checking.answers import Kind
from depthgauge.checking.words import percent

SMALL_SHARE = (
    0.06  # of the best rate's fall, from which on more steps are made. A thirtieth of a sound rate reaches 0.002
)
# to 0.03 in 18 of 24 small trainings, and 0.06 to 0.4 in six that learn at that rate too; sound rates 0.02 to 1
LONGER = 4  # times as many steps, after which the present rate still has not made LOW_SHARE of the best rate's fall. Of
# those 18 none makes more than 0.065; of sound rates, and of a third of them, none makes less than 0.25 (frozen heads,
# which this is not asked of, left out)
MOVED = (
    0.1  # of their norm, by which LONGER times as many steps move weight matrices at most where a rate is too small:
)
# a thirtieth of a sound rate 0.00x to 0.08 where the loss stays, a third of one 0.11 and more
SLOW_SHARE = 0.25  # of a larger rate's fall, late in MANY_STEPS. A thirtieth of a sound rate 0.05 to 0.07 where it
# still learns; sound ones, with a low share of 24 steps' fall, 0.93 and more
BEHIND_SHARE = 0.44  # of it, where weight matrices move by less than MOVED and new batches gain, too. A thirtieth of a
# sound rate 0.40 to 0.48 (Adamax, a gated recurrence), a sound low rate 0.48 to 0.50 (AdamW of 3e-5): a training each
CLEAR = 4.0  # standard errors, by which two branches differ where a difference is one
FEWEST_STEPS = 96  # of a branch, that acquit a rate
FEW_STEPS = 192  # of a branch, that condemn one
RECOVERED = 0.9  # of the smaller rates' fall, late in a branch: the rate trains, whatever its first steps did
LATE_SHARE = 0.75  # of it, below which the rate is too large
MANY_STEPS = 400  # of a branch, in which noise has shown
NOISY_SHARE = 0.88  # of the smaller rates' fall, below which a rate is too large after so many steps
GROWING = 2.0  # times what a constant pace makes in LONGER times as many steps: they still grow, of an optimizer that
# warms up by itself (RAdam)
NO_FLOOR = 10.0  # times the loss at the start, that the best rate lets it fall: no loss that ends at 0 does so
ABOUT_ZERO = 2.0  # standard deviations over batches, within which a loss with negative values lies about zero
LOW_SHARE = 0.1  # of the best rate's fall: between the two, and below it a search for a better rate pays
SMALL_FACTOR = 10.0  # times the rate, where the best one is at least: so that no small step of the search decides
LARGE_SHARE = 0.5  # of the best rate's fall, where the best is a third or less. Three times a sound rate: 0.86 and more
# on the one seed that was looked at, and 2 of 66 trainings of other seeds are called too large there
HARM = 0.05  # of the loss at the start, that a rate has to lose against a smaller one: a prompt before a frozen network
# that was never trained lowers the loss by 2 % at any rate
LARGE_FACTOR = 0.35  # a third of the rate, with rounding
HELD_UP, LEFT = 0.85, 4.0  # of the fall without a decay, and times the loss that is left then: decay and gradient
# balance far above
SCHEDULED = 48  # steps, after which a schedule has not come to its end
SHORT = 0.5  # of the fall at its peak. A rate that falls to a tenth every seven steps makes 0.23 to 0.26 of it
NOTHING = 0.002  # of the loss at the start, and a tenth of its spread over batches: a fall below both is none
BATCH_SPREAD = 0.1
RISE = 0.1  # of the loss at the start, and three times the spread over batches: a rise above both is one
SPREADS = 3.0
FLIPPED_DECAY = 1.0  # rate times decay, from which on a step turns the weight's sign
OUTRUN = 0.5  # decay times a gain of 1, in steps of Adam, which are at most about one rate long (Kingma & Ba 2015,
# section 2.1): the gain rests where decay times gain is the mean step, and that is 1 where all gradients agree alone
STRONG_DECAY = 0.02  # rate times decay: weights are then a mean over the updates of the last 50 steps
DROWNED = 10.0  # norm of decay times weight over that of the gradient; both are equal where a trained model rests
LONG_MEMORY = 200.0  # steps that momentum averages over, 1 / (1 - m); 10 to 100 are usual (m = 0.9 to 0.99)
LOW_START = 0.01  # of the peak: a schedule that begins there or below trains nothing until it is stepped; a linear
# warm-up of torch's begins at a third by default, a cosine restart at its peak
SMALL_GROUP = 1e-4  # of the largest rate: layer-wise decay over 24 layers reaches 3e-5, and then of trained weights

KINDS = {
    "diverges": Kind(
        "fault", "the loss is not finite within the first steps at the present rate, and it was before the first"
    ),
    "rate_too_large": Kind(
        "fault",
        f"from the same weights, a third of the rate or less lets the loss fall more than {1 / LARGE_SHARE:.0f} times"
        " as far in 24 steps, or the present rate raises it above twice its start (Smith's end of a range test), and"
        f" over up to 480 steps on batches as they come it does not make {percent(RECOVERED)} of a smaller rate's fall;"
        f" or late in these steps it makes less than {percent(LATE_SHARE)} of that fall ({percent(NOISY_SHARE)} after"
        f" {MANY_STEPS} steps). Not asked of a loss about zero, that gains weigh (a policy's); a warm-up is given its"
        " steps",
    ),
    "rate_too_small": Kind(
        "fault",
        f"from the same weights, {SMALL_FACTOR:.0f} times the rate or more lets the loss fall more than"
        f" {1 / SMALL_SHARE:.0f} times as far in 24 steps, on batches that it has not seen, too; and in {LONGER} times"
        f" as many the present rate does not make {percent(LOW_SHARE)} of that fall, and moves weight matrices by less"
        f" than {percent(MOVED)}; or it makes less than {percent(LOW_SHARE)} of a far larger rate's fall in 24 steps,"
        f" and less than {percent(SLOW_SHARE)} over {MANY_STEPS} on batches as they come"
        f" ({percent(BEHIND_SHARE)} where weight matrices move so little, and new batches gain). Not asked of a model"
        " that has learnt already, of a"
        " loss that passes through weights of another optimizer (a generator's) or has no floor (a policy's), nor while"
        " steps still grow (an optimizer that warms up by itself)",
    ),
    "no_progress": Kind(
        "fault",
        f"at no rate from a millionth to a thousand times the present one the loss of 8 batches falls by"
        f" {percent(NOTHING)} of its start in 24 steps on them, the model has not learnt yet, and the loss does not lie"
        " about zero (a policy's)",
    ),
    "rate_zero": Kind("fault", "every rate is 0, and no schedule raises it: no weight moves"),
    "idle_schedule": Kind(
        "fault",
        f"a schedule has put every rate to {percent(LOW_START)} of its peak or less, its scheduler is gone or is the"
        " optimizer's own, whose steps leave the rate as it is, and at that rate the loss falls next to nothing",
    ),
    "short_schedule": Kind(
        "fault",
        f"after {SCHEDULED} steps a schedule, or the optimizer's own steps, have put every rate to {percent(LOW_START)}"
        f" of its peak or less, and at its peak, tried, as many steps lower the loss {1 / SHORT:.0f} times as far",
    ),
    "never_moved": Kind(
        "fault",
        "neither own steps nor made-up gradients, however large, move float32 weights that the optimizer holds, that"
        " get a gradient and whose rate is not 0",
    ),
    "endless_sum": Kind(
        "fault",
        "after 48 steps with one made-up gradient, 46 with its opposite still go the old way, as where gradients of all"
        " steps are added up: a momentum of 0.99 turns after 32; or zero_grad() leaves gradients bit for bit as they"
        " are in each of these steps, and they are still there when the training's own backward pass adds the next",
    ),
    "uneven_step": Kind(
        "fault",
        "a step with a made-up gradient and one with its opposite do not cancel: together they make half or more of"
        " what they make apart (0 where they are opposite, 0.7 where one of them does nothing, 1 where the sign is"
        " lost)",
    ),
    "momentum_wiped": Kind(
        "fault",
        "a state of each parameter is the optimizer's last step itself, and the next step, without a gradient, repeats"
        " less than 5 % of it, and not nothing: the rate multiplies the momentum in place",
    ),
    "moments_cleared": Kind(
        "fault", "after each step the averages of gradients, states with such a name, are 0 for all parameters"
    ),
    "dampened": Kind("fault", "SGD's dampening is 1 or more: after the first step no gradient enters the momentum"),
    "maximizes": Kind(
        "fault", "the optimizer has maximize=True, and the loss is a cross-entropy or an error: steps raise it"
    ),
    "still_group": Kind(
        "fault",
        f"a parameter group has the rate 0, or one below {SMALL_GROUP:g} of the largest, no schedule raises it, and it"
        " holds layers with the weights of new ones, above layers that train",
    ),
    "group_at_zero": Kind("property", "a parameter group has the rate 0, and no schedule raises it"),
    "rate_low": Kind(
        "opportunity", f"ten times the rate or more lets the loss fall {1 / LOW_SHARE:.0f} times as far in 24 steps"
    ),
    "warm_up": Kind(
        "opportunity",
        f"the first steps raise the loss by {percent(RISE)} of its start and {SPREADS:.0f} times its spread over"
        " batches, and a rate that rises linearly over half of the steps ends lower; tried",
    ),
    "decay_lost": Kind(
        "fault",
        "rate times weight decay is below half the spacing of numbers below 1 in the weights' format, so that"
        " multiplying by 1 minus it changes nothing; the optimizer's own default decay, that nobody asked for, is"
        " let pass",
    ),
    "decay_dominates": Kind(
        "fault",
        f"rate times weight decay is {STRONG_DECAY} or more, so that weights keep the updates of 50 steps at most; or"
        f" the decay's part of the gradient is {DROWNED:.0f} times that of the loss, where both are equal at rest;"
        f" or, tried where it may matter, the loss falls less than {percent(LARGE_SHARE)} as far with it as without,"
        f" or less than {percent(HELD_UP)} as far and {LEFT:.0f} times as much of it is left",
    ),
    "decay_on_gains": Kind(
        "fault",
        f"decoupled decay takes {OUTRUN:g} or more of a rate in each step from the gains of normalizations, which steps"
        " of Adam, at most about one rate long, put back where every gradient agrees alone (Kingma & Ba 2015)",
    ),
    "momentum": Kind(
        "fault",
        f"a momentum of 1 or more, which never forgets, or one that averages over more than {LONG_MEMORY:.0f} steps",
    ),
    "idle_momentum": Kind("property", "a momentum between 0 and 0.3 averages over fewer than 1.5 gradients"),
    "betas": Kind(
        "fault",
        "beta1 is not below the root of beta2, which Adam's convergence needs (Reddi et al. 2018, arXiv:1904.09237)",
    ),
}  # fmt: skip
