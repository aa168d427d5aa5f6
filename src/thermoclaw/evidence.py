"""What the numbers in a finding's evidence are: one name, one definition.

Names of quantities mean what the table of quantities says, for the typical layer concerned at the step where the
finding was certain. The others are here.
"""

from __future__ import annotations

from thermoclaw.quantities import TABLE

EVIDENCE: dict[str, str] = {
    "alignment_before": "Alignment of step and gradient before it fell.",
    "batch_size": "Examples a step, as they were told to the detector.",
    "beta2": "Adam's β₂.",
    "came_with_the_data": (
        "1 where the loss of the same batch stood out already and both stayed up, so that other data made it; else 0."
    ),
    "chance": "Loss of a guess that knows nothing: ln C, for a cross-entropy over C classes.",
    "clip_coefficient": "What clipping left of a clipped gradient, in the mean: bound over norm.",
    "clip_fraction": "Share of the steps whose gradient was clipped.",
    "clip_value": "Bound at which each element of the gradient is clipped.",
    "coherence_size": (
        "Root mean square of the coherence: how far successive gradients agree or oppose each other, either way."
    ),
    "dead_share": "Share of the features that are zero in every row, for several checks in a row.",
    "dead_share_before": "The same share at the first checks.",
    "decay_over_gradient": "Size of the decay term λ‖θ‖ over the norm of the gradient.",
    "decay_over_update": "Length of the decay part of a step over the step's own length.",
    "decay_per_step": (
        "Share of the weights that decay alone takes at a step in the long run: ηλ, over 1 − β where momentum sums it."
    ),
    "distance_over_walk": (
        "Squared distance from the start over that of steps of the same lengths in random directions."
    ),
    "distance_ratio": "Distance of the weights from their start, over their norm.",
    "effective_rank": (
        "Number of directions that the outputs of the module use: exp of the entropy of their spectrum."
    ),
    "effective_rank_before": "The same number at the first checks.",
    "eps": "Adam's ε, which is added to the size of the gradient.",
    "gain": (
        "How much the typical layer named scaled its inputs when the run began (start_gain); about 1 keeps their size."
    ),
    "gained": "Share of the first loss that is gone by now.",
    "gap": "Validation loss less training loss, over the first loss.",
    "grad_rms": "Root mean square of the gradient's elements, in the typical layer named.",
    "gradient_before": "Root mean square of the gradient's elements before it vanished.",
    "gradient_change": "Gradient norm after over gradient norm before.",
    "gradient_growth": "Gradient norm now over that of the first steps.",
    "gradient_left": "Gradient norm now over its largest value.",
    "gradient_ratio": "Gradient of the early layers over that of the last ones, a weight.",
    "growth": "Value now over the value where the growth began.",
    "growth_per_step": "Share by which the norm of the weights grows at a step.",
    "half_spacing_over_step": (
        "Half the distance between neighboring numbers at a typical weight, over the typical step there. "
        "Above 1 a step is rounded away."
    ),
    "inf_rows": "Rows of the module's output that hold an infinity.",
    "jumps": "Times that the weights jumped.",
    "lattice_order": "How evenly spaced the weights are: 1 for a perfect lattice, next to 0 for ordinary weights.",
    "layers": "Layers concerned; in the plateau that the thermometer tells, all layers of which it can tell.",
    "loss_after": "Loss after the step in question.",
    "loss_at_start": "Level of the loss where the record, or what is compared, begins.",
    "loss_before": "Loss before the step in question; after a jump of the rate, the largest of the ten before.",
    "loss_share": "Loss now over the first loss.",
    "lr_before": "Learning rate before it jumped.",
    "max_norm": "Norm at which gradients are clipped.",
    "missing_parameters": "Trainable parameters that get gradients and are in no group of the optimizer.",
    "nan_rows": "Rows of the module's output that hold a NaN.",
    "noise_floor": "Alignment that this momentum gives on gradients of pure noise: √(1 − β₁²).",
    "noise_scale": "Batch size at which noise and signal of the gradient are of one size, in examples.",
    "non_finite_rows": "Recorded steps with a NaN or an infinity.",
    "norm_drop": "Share of its largest norm that the typical layer named has lost.",
    "over_longest_step": "Change of the weights over the longest step that the optimizer can make there.",
    "over_median": "Largest gradient norm over the median of those around it.",
    "over_recent_maximum": "Gradient norm over the largest of the steps just before.",
    "overshoot_share": "Share of the last steps after which the loss, on the next batch, rises along the step.",
    "peak_lr": "Largest learning rate so far.",
    "radial_share": "Share of the step that goes along the weights themselves, outward.",
    "random": "1 where successive gradients are as far apart as random directions in as many dimensions; else 0.",
    "rates_apart": "Larger over smaller learning rate of the groups in question.",
    "reach": (
        "Slope of the next batch's loss along the step over the slope that the step's own batch had: −1 where "
        "steps are short against the curvature, above 0 past the minimum."
    ),
    "recent_maximum": "Largest of the steps just before.",
    "recommended_max_norm": "Norm at which clipping would cut outliers alone.",
    "rise_over_slopes": (
        "Change of the loss over the change that the gradients met along the steps ask for: 1 where the loss "
        "is minimized, negative where its sign is turned."
    ),
    "rows": "Rows of the module's output that were looked at.",
    "scale_of_before": "Size of the module's outputs over that at the first checks.",
    "scatter": "How far the losses of single batches lie apart, over their mean.",
    "share": "Share of the parameters concerned.",
    "share_lost": "Share of the parameters whose typical step is rounded away.",
    "shift": "How far the last losses all lie above all before them, in spreads of those.",
    "shrink_per_step": "Share by which the norm of the weights shrinks at a step, decay included.",
    "shrinking_per_step": "Share by which the norm of the weights shrinks at a step, beyond what decay explains.",
    "sigma_growth": "Entropy production now over that of the first steps.",
    "silent_share": "Share of the output units that never got a gradient in the batches that were looked at.",
    "slope": "Change of the loss a step, by regression over the last steps.",
    "spikes": "Gradient norms that stand out from those around them.",
    "spread": (
        "How far the directions of the module's outputs are from being one: 0 where all rows point the same way."
    ),
    "spread_before": "The same number at the first checks.",
    "stationary_layers": "Layers whose fluctuation–dissipation ratio is 1 within its interval.",
    "steepness": (
        "‖g‖‖θ‖ over the loss: how many times itself the loss changes while the weights change by their own length."
    ),
    "step_over_lr": "Typical step of a weight over the learning rate.",
    "steps_at_zero": "Steps made since the learning rate became zero.",
    "steps_for_a_tenth": "Steps for which the loss falls by a tenth at the present pace.",
    "steps_without_gradient": "Steps at which no gradient was found.",
    "train_loss": "Training loss at the step of the validation.",
    "update_over_lr": "Root mean square step of a weight over the learning rate.",
    "update_ratio_cold": "Relative step of the layers with the smaller learning rate.",
    "update_ratio_hot": "Relative step of the layers with the larger learning rate.",
    "val_loss": "Validation loss.",
    "zero_share": "Share of the gradient's elements that are exactly zero, in the typical layer.",
    "zero_share_before": "The same share at the first looks.",
}


def meaning(name: str) -> str:
    """What a number of a finding's evidence is; "" for a name that nobody knows.

    Example:
        >>> meaning("norm_drop")
        'Share of its largest norm that the typical layer named has lost.'
        >>> meaning("coherence")
        'How far successive gradients agree.'
    """
    return TABLE[name].meaning if name in TABLE else EVIDENCE.get(name, "")
