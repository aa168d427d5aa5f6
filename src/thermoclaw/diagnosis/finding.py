"""What a rule says: a finding with its evidence, and how findings are ranked and worded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from thermoclaw.diagnosis.refutations import REFUTED_BY
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.rich import finding_html
from thermoclaw.record import LayerInfo
from thermoclaw.wording import sentence, short_name

CONFIDENCES = ("HIGH", "MEDIUM", "LOW")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, since when, why, and what to change.

    Attributes:
        code: which failure, from the catalogue in the documentation.
        confidence: "HIGH" (act), "MEDIUM" (look), "LOW" (for information).
        title: one clause, for plots and tables.
        seen: what was measured, as a sentence.
        meaning: what that implies.
        advice: what to try.
        source: where the signal and its threshold come from.
        layers: names of the layers concerned, in model order; empty means the whole run.
        first_step: the first step at which the signal held.
        raised_step: the step at which it was certain enough to say so.
        evidence: named quantities with their values.
        remedy: the change as an object that can apply itself, where one exists.
        explains: codes of other findings that are symptoms of this one.

    The texts are made fit to be shown: one line each, no control characters, no endless words. `layers` are the names
    as they are.
    """

    code: str
    confidence: str
    title: str
    seen: str
    meaning: str
    advice: str
    source: str
    first_step: int
    raised_step: int
    layers: tuple[str, ...] = ()
    evidence: dict[str, float] = field(default_factory=dict)
    remedy: Remedy | None = None
    explains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("title", "seen", "meaning", "advice", "source"):
            object.__setattr__(self, name, sentence(getattr(self, name)))

    @property
    def recommendation(self) -> str:
        """The finding as one sentence with its confidence: "[HIGH] what was seen. What to do."."""
        return f"[{self.confidence}] {self.seen} {self.advice}"

    @property
    def message(self) -> str:
        """One line for a console: recommendation and the step."""
        return f"step {self.raised_step}: {self.recommendation}"

    @property
    def refuted_by(self) -> str:
        """An observation that would show the finding to be wrong; empty for a code that is not the library's own."""
        return REFUTED_BY.get(self.code, "")

    @property
    def severity(self) -> tuple[int, int]:
        """Sort key: confident findings first, then early ones."""
        return CONFIDENCES.index(self.confidence), self.first_step

    def _repr_html_(self) -> str:
        """For notebooks."""
        return finding_html(self)

    def raised_at(self, step: int) -> Finding:
        """The same finding, raised at another step."""
        return replace(self, raised_step=step)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return {
            "code": self.code,
            "confidence": self.confidence,
            "title": self.title,
            "seen": self.seen,
            "meaning": self.meaning,
            "advice": self.advice,
            "source": self.source,
            "first_step": int(self.first_step),
            "raised_step": int(self.raised_step),
            "layers": list(self.layers),
            "evidence": {k: float(v) for k, v in self.evidence.items()},
            "remedy": self.remedy.to_json() if self.remedy else None,
            "explains": list(self.explains),
            "refuted_by": self.refuted_by,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Finding:
        """Rebuild what `to_json` wrote."""
        remedy = Remedy.from_json(data["remedy"]) if data.get("remedy") else None
        plain = {k: data[k] for k in ("code", "confidence", "title", "seen", "meaning", "advice", "source")}
        if plain["confidence"] not in CONFIDENCES:
            raise ValueError(f"unknown confidence {plain['confidence']!r}")
        return cls(
            **plain,
            first_step=int(data["first_step"]),
            raised_step=int(data["raised_step"]),
            layers=tuple(str(name) for name in data["layers"]),
            evidence={str(k): float(v) for k, v in data["evidence"].items()},
            remedy=remedy,
            explains=tuple(str(code) for code in data.get("explains", ())),
        )


def describe_layers(chosen: Sequence[LayerInfo], total: int) -> str:
    """Layers as a person groups them.

    >>> describe_layers([LayerInfo("wte", "embedding", 9), LayerInfo("wpe", "embedding", 9)], 8)
    '2 embedding layers (wte, wpe)'
    >>> describe_layers([LayerInfo(f"h.{i}.attn.{p}", "attention", 9) for i in range(4, 10) for p in "qk"], 99)
    '12 attention layers (h, blocks 4 to 9)'
    """
    count = len(chosen)
    if count == 0:
        return "no layer"
    if count == total and count > 1:
        return f"all {total} layers"
    kinds: dict[str, int] = {}
    for layer in chosen:
        kinds[layer.ltype] = kinds.get(layer.ltype, 0) + 1
    names = [short_name(layer.name) for layer in chosen]
    where = ", ".join(names) if count <= 3 else _blocks(names) or f"{names[0]} … {names[-1]}"
    if len(kinds) == 1:
        (kind, _), plural = next(iter(kinds.items())), "s" if count > 1 else ""
        word = "layer" if kind == "generic" else f"{kind} layer"
        return f"{count} {word}{plural} ({where})"
    parts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: -item[1]))
    return f"{count} layers ({parts}: {where})"


def _blocks(names: Sequence[str]) -> str:
    """Where the names are those of numbered blocks of one stack: the stack and the numbers; else empty."""
    found = [re.match(r"(.*?)\.?(\d+)\.", name) for name in names]
    stacks = {match.group(1) for match in found if match}
    if len(stacks) != 1 or not all(found):
        return ""
    numbers = sorted({int(match.group(2)) for match in found if match})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) > 4:
        return ""
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    stack = stacks.pop()
    return f"{stack + ', ' if stack else ''}block{'s' if len(numbers) > 1 else ''} {told}"
