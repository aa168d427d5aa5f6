"""What moves each quantity, and which two runs show it: the words and choices of the page "What am I looking at"."""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """Which runs to show, on which axis, and what makes the quantity move."""

    healthy: str
    faulty: str
    axis: str  # log, linear, or symlog
    moves: str


class Group(NamedTuple):
    """Quantities that answer one question."""

    title: str
    text: str
    notes: dict[str, Note]


GROUPS = (
    Group(
        "Is it learning?",
        "The loss, and the knobs as the optimizer had them at that step. Everything else explains these.",
        {
            "loss": Note(
                "gpt", "gpt_rate", "linear",
                "Falls while the model learns. A level that it keeps from early on, a jump, or a rise is what most "
                "people notice first, and the last thing to change.",
            ),
            "epoch": Note(
                "gpt", "gpt_rate", "linear",
                "Goes up by one at each `observer.epoch_end()`.",
            ),
            "lr": Note(
                "gpt", "gpt_rate", "log",
                "Your schedule. Look here first when something changes at one step.",
            ),
            "weight_decay": Note(
                "gpt", "gpt_decay", "linear",
                "Your setting. Layers differ where groups differ.",
            ),
            "momentum": Note(
                "gpt", "gpt_momentum", "linear",
                "Your setting, or a schedule that cycles it.",
            ),
        },
    ),
    Group(
        "How large are things?",
        "Sizes by layer. They differ between layers by orders of magnitude in healthy runs; look for layers that "
        "leave the others, and for changes in time.",
        {
            "grad_norm": Note(
                "gpt", "gpt_rate", "log",
                "Falls as the loss does, rises with spikes. Near zero from some step on: nothing arrives. Growing "
                "without end: divergence.",
            ),
            "grad_sq": Note(
                "gpt", "gpt_rate", "log",
                "The square of the same; what sums over layers.",
            ),
            "grad_sq_smooth": Note(
                "gpt", "gpt_batch", "log",
                "Follows the gradient over about twenty steps.",
            ),
            "grad_sq_baseline": Note(
                "gpt", "gpt_batch", "log",
                "Follows more slowly still: it is a running median.",
            ),
            "param_norm": Note(
                "gpt", "gpt_decay", "log",
                "Grows while a layer learns, levels off where decay and steps balance. A steady fall to nothing is "
                "erosion, a steady growth along itself a blow-up.",
            ),
            "param_sq": Note(
                "gpt", "gpt_decay", "log",
                "The square of the same; what decay takes a share of.",
            ),
            "update_norm": Note(
                "gpt", "gpt_rate", "log",
                "Follows the learning rate under Adam, rate times gradient under SGD.",
            ),
            "update_sq": Note(
                "gpt", "gpt_rate", "log",
                "The square of the same.",
            ),
            "update_ratio": Note(
                "gpt", "gpt_rate", "log",
                "Rises with the rate and where weights shrink. Above one hundredth for long, a layer is rewritten "
                "instead of trained; some thousands of times smaller, it stands still.",
            ),
            "grad_param_ratio": Note(
                "gpt", "gpt_decay", "log",
                "Rises where gradients grow or weights shrink.",
            ),
            "distance": Note(
                "gpt", "gpt_rate", "log",
                "Only grows fast at first. A layer that stays at zero is frozen.",
            ),
            "E_param_dist": Note(
                "gpt", "gpt_rate", "log",
                "The same for the whole model.",
            ),
        },
    ),
    Group(
        "Which way do steps go?",
        "Angles between gradients and steps, and what a step did to the loss. These see a learning rate that is too "
        "high before the loss does.",
        {
            "coherence": Note(
                "digits_full", "digits_few", "linear",
                "Toward 1 where every batch asks for the same: large batches, an early phase, a slow rate. Toward 0 "
                "with batch noise. Negative where steps overshoot.",
            ),
            "rho_mean": Note(
                "digits_full", "digits_few", "linear",
                "The same for the whole model.",
            ),
            "alignment": Note(
                "digits_full", "gpt_momentum", "linear",
                "Falls with momentum, with Adam's rescaling and with decay; compare with the floor in the table.",
            ),
            "work": Note(
                "gpt", "gpt_rate", "symlog",
                "Positive where the step descends on its own batch; shrinks with the rate and the gradient.",
            ),
            "overshoot": Note(
                "digits_full", "digits_few", "symlog",
                "Turns positive where steps are longer than the valley is wide, also by noise.",
            ),
        },
    ),
    Group(
        "Balance and noise",
        "Whether decay and steps keep weights in balance, and how much of a gradient is the batch's own accident.",
        {
            "norm_budget": Note(
                "gpt", "gpt_decay", "symlog",
                "Sinks below 1 when decay grows against the steps. Early in a run it is far from 1 in any case, as "
                "norms still grow.",
            ),
            "noise": Note(
                "gpt", "gpt_batch", "log",
                "Falls with larger batches, and as examples come to be fitted.",
            ),
            "noise_share": Note(
                "digits_full", "digits_few", "linear",
                "Rises with smaller batches, and late in a run, when the signal is used up.",
            ),
            "temperature": Note(
                "digits_full", "digits_few", "symlog",
                "Rises with the rate and with smaller batches.",
            ),
        },
    ),
    Group(
        "Entropy production and equilibrium",
        "How hard each layer works, against its own past. *Equilibrium* means steady, not finished.",
        {
            "sigma": Note(
                "gpt", "gpt_rate", "log",
                "Rate times squared gradient: it follows both.",
            ),
            "sigma_ema": Note(
                "gpt", "gpt_rate", "log",
                "The same, smoothed.",
            ),
            "sigma_star": Note(
                "gpt", "gpt_rate", "log",
                "The layer's habit, which r divides by.",
            ),
            "r": Note(
                "gpt", "gpt_rate", "log",
                "Below 1 while gradients shrink, which healthy runs do; above 1 when they grow; 1 when nothing "
                "changes. A schedule alone leaves it where it is.",
            ),
            "R_median": Note(
                "gpt", "gpt_rate", "log",
                "The same for the layer in the middle.",
            ),
            "D": Note(
                "gpt", "gpt_batch", "log",
                "Rises when some layers change their pace and others do not.",
            ),
            "eq_now": Note(
                "gpt", "gpt_rate", "linear",
                "Share of layers inside the band at this step.",
            ),
            "eq_frac": Note(
                "gpt", "gpt_rate", "linear",
                "The same, averaged. A run that is dead can be perfectly steady.",
            ),
        },
    ),
    Group(
        "Where entropy production goes",
        "σ splits into a productive part and three kinds of overhead. All are zero or positive and sum to σ.",
        {
            "d_eS": Note(
                "gpt", "gpt_decay", "log",
                "What descends. It vanishes where steps no longer follow the gradient.",
            ),
            "d_iS": Note(
                "gpt", "gpt_decay", "log",
                "All overhead together.",
            ),
            "d_iS_momentum": Note(
                "digits_full", "gpt_momentum", "symlog",
                "Grows with momentum and with Adam's rescaling. Zero for plain SGD.",
            ),
            "d_iS_noise": Note(
                "digits_full", "digits_few", "symlog",
                "Grows as batches shrink. Zero on full batches.",
            ),
            "d_iS_wd": Note(
                "gpt", "gpt_decay", "symlog",
                "Grows with decay; zero without.",
            ),
            "R_ie": Note(
                "gpt", "gpt_decay", "symlog",
                "Overhead over productive part. It grows with momentum, noise and decay, and jumps where nothing "
                "productive is left.",
            ),
            "total_d_eS": Note(
                "gpt", "gpt_decay", "log",
                "Sum over layers.",
            ),
            "total_d_iS": Note(
                "gpt", "gpt_decay", "log",
                "Sum over layers.",
            ),
            "R_ie_total": Note(
                "gpt", "gpt_decay", "log",
                "The model's overhead, led by the layers that work most.",
            ),
            "R_ie_median": Note(
                "gpt", "gpt_decay", "log",
                "The overhead of the layer in the middle.",
            ),
            "R_ie_max": Note(
                "gpt", "gpt_momentum", "log",
                "The worst layer. One small layer is enough to reach the cap, in healthy runs too.",
            ),
        },
    ),
    Group(
        "A closer look now and then",
        "Measured at [probes](measuring.md#probes) only, every few steps: faults that show in single rows and "
        "numbers.",
        {
            "has_grad": Note(
                "digits", "digits_cut", "linear",
                "0 where a layer is cut off, frozen or not used by the loss.",
            ),
            "grad_zeros": Note(
                "digits", "digits_rate", "linear",
                "Rises with dead units, sparse inputs, and gradients below the smallest number of a format.",
            ),
            "silent_rows": Note(
                "digits", "digits_rate", "linear",
                "Units that had no gradient lately.",
            ),
            "dead_rows": Note(
                "digits", "digits_rate", "linear",
                "Units that had none for long.",
            ),
            "row_likeness": Note(
                "digits", "digits_alike", "log",
                "Near 1 after a symmetric start, and where outputs run away together.",
            ),
            "start_gain": Note(
                "digits", "digits_large", "points",
                "How the weights were made. It does not change.",
            ),
            "attention_gain": Note(
                "gpt", "gpt_rate", "log",
                "Grows with queries and keys. Without bound, attention looks at one place only.",
            ),
            "input_scale": Note(
                "digits", "digits_input", "log",
                "Inputs that nobody divided by their standard deviation.",
            ),
            "output_drift": Note(
                "digits", "digits_nll", "linear",
                "Above 0 where the loss lets all outputs move together: it is not softmax cross-entropy.",
            ),
            "stable_rank": Note(
                "digits", "digits_one", "log",
                "Exactly 1 at every probe: each step sees one example, or the inputs of that layer are all alike.",
            ),
        },
    ),
)  # fmt: skip
NOTES = {name: note for group in GROUPS for name, note in group.notes.items()}
