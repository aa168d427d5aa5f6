"""The raw columns that a measuring backend writes, one row a unit and step.

Legend: g gradient at this step, g₁ g₂ g₃ one to three steps before, Δ the step just taken, Δ₁ the one before, θ⁻ the
parameters before it, φ = θ − θ₀. A tilde marks a sketched product. Exact backends write exact products everywhere.
"""

from __future__ import annotations

RAW_COLUMNS = (
    "g_g",  # ‖g‖², exact
    "p_p",  # ‖θ‖² after the step, exact
    "gs_gs",  # ‖g̃‖², which calibrates the products with g
    "g_g1",  # ⟨g, g₁⟩
    "g_g2",
    "g_g3",
    "g_d",  # ⟨g, Δ⟩
    "g_d1",  # ⟨g, Δ₁⟩
    "g_p",  # ⟨g, θ⁻⟩
    "ps_ps",  # ‖θ̃⁻‖²
    "d_d",  # ‖Δ‖²
    "d_p",  # ⟨Δ, θ⁻⟩
    "f_f",  # ‖φ‖²
    "lr",  # learning rate, where it is a tensor on the device; NaN otherwise
    "skipped",  # 1 where a loss scaler refused the step
)
RAW = {name: i for i, name in enumerate(RAW_COLUMNS)}

# what a probe writes, one row a unit and probe (see `probe`)
PROBE_COLUMNS = (
    "zeros",  # elements of the gradient that are exactly zero
    "silent",  # rows without gradient in the last few probes
    "dead",  # and in many
    "row_likeness",  # of the layer's largest matrix
    "start_gain",  # of the same
    "attention_gain",  # of the queries and keys
    "input_scale",  # of what goes into the first layer
    "output_drift",  # share of the last layer's gradient that moves all outputs together
    "stable_rank",  # of the last layer's gradient, or of the first one's where there are few outputs
)
PROBE = {name: i for i, name in enumerate(PROBE_COLUMNS)}

# what it looked at, known on the host; NaN for units that are not probed
SEEN_COLUMNS = (
    "numbers",  # elements that `zeros` is out of
    "silent_of",  # rows that `silent` is out of
    "dead_of",
)
SEEN = {name: i for i, name in enumerate(SEEN_COLUMNS)}
