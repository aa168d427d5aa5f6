"""The house colors, for pictures and pages alike. No dependency."""

from __future__ import annotations

INK = "#222222"
SOFT = "#666666"
FAINT = "#E4E4E4"
RAW = "#9DB4C6"
LINE = "#0B4F7D"
WARN = "#D55E00"
UNDEFINED = "#C4C4C4"

# Okabe and Ito's colors, which people with any kind of color vision tell apart.
TYPE_COLORS = {
    "embedding": "#E69F00",
    "attention": "#0072B2",
    "mlp": "#009E73",
    "layernorm": "#CC79A7",
    "lm_head": "#56B4E9",
    "generic": "#7A7A7A",
}
OTHER_TYPES = ("#8C6D31", "#5E3C99", "#000000")
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
PART_COLORS = {"d_eS": "#8DBBD9", "d_iS_momentum": "#F2D65C", "d_iS_noise": "#A9A9A9", "d_iS_wd": "#D55E00"}
PART_LINES = {"d_eS": "#4A90BD", "d_iS_momentum": "#C9A400", "d_iS_noise": "#7F7F7F", "d_iS_wd": "#D55E00"}
PART_NAMES = {"d_eS": "productive", "d_iS_momentum": "momentum", "d_iS_noise": "noise", "d_iS_wd": "decay"}
CONFIDENCE = {"HIGH": ("#B2182B", "-"), "MEDIUM": ("#A65A00", (0, (5, 2))), "LOW": ("#5A5A5A", (0, (1, 1.5)))}


def type_color(ltype: str, types: list[str]) -> str:
    """The color of a layer type; unknown types get the spare colors in turn."""
    if ltype in TYPE_COLORS:
        return TYPE_COLORS[ltype]
    unknown = [t for t in types if t not in TYPE_COLORS]
    return OTHER_TYPES[unknown.index(ltype) % len(OTHER_TYPES)]
