"""The recommendations page and the ranks, from the table of rules, their source, and what the zoo measured of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import comb

import zoo_tables
from markdown_tables import linked, plain, table
from rule_words import Words, words_of_findings

# Failures that have a name and may have no rule; `blind` leaves out those that have one by now.
CATALOGUE = {
    "attention_logit_growth": "Attention logits grow until attention is one-hot",
    "output_logit_divergence": "Output logits drift away together (log Z far from 0)",
    "rank_divergence": "Replicas of a distributed run no longer agree; seen between processes only",
}


def rules() -> str:
    """A summary, then a section for every rule."""
    from thermoclaw.diagnosis.refutations import REFUTED_BY
    from thermoclaw.diagnosis.rules import RULES

    told, ranks = words_of_findings(), rank_of()
    rows = [
        (
            f"[`{rule.code}`](#{rule.code})",
            plain(rule.detects),
            str(ranks.get(rule.code, "–")),
            ", ".join(f"`{knob}`" for knob in told[rule.code].remedy) or "–",
            zoo_tables.recall(rule.code),
            zoo_tables.precision(rule.code),
        )
        for rule in RULES
    ]
    heads = ("code", "what it detects", "rank", "remedy", "named first", "right when named first")
    lines = table(heads, rows)
    for rule in RULES:
        words = told[rule.code]
        lines += ["", f"### `{rule.code}` {{ #{rule.code} }}", "", f"{plain(rule.detects)}.", ""]
        lines += several("Means", words.meaning) + several("Try", words.advice)
        lines += several("Wrong if", [f"{REFUTED_BY[rule.code]}."])
        lines += [f"- **Remedy:** {remedy(words)}", f"- **Looks at:** {plain(rule.signal)}"]
        lines += [f"- **Speaks when:** {plain(rule.threshold)}", f"- **Evidence it gives:** {evidence(words)}"]
        lines += [f"- **Rank:** {rank(rule.code, ranks)}", *several("Source", sources(rule.source, words.source))]
        lines += zoo_tables.measured(rule.code)
    return "\n".join(lines)


def finding_tests() -> str:
    """For every code what it says, and the observation that would refute it."""
    from thermoclaw.diagnosis.refutations import REFUTED_BY
    from thermoclaw.diagnosis.rules import RULES

    rows = [
        (f"[`{rule.code}`](recommendations.md#{rule.code})", plain(rule.detects), f"{plain(REFUTED_BY[rule.code])}")
        for rule in RULES
    ]
    return "\n".join(table(("code", "what it says", "wrong if"), rows))


def several(name: str, texts: Sequence[str]) -> list[str]:
    """A bullet with one text, or with a bullet for each."""
    if len(texts) == 1:
        return [f"- **{name}:** {sentence(texts[0])}"]
    return [f"- **{name}:**", *(f"    - {sentence(text)}" for text in texts)]


def sentence(text: str) -> str:
    """Words of a finding, its blanks in italics."""
    return re.sub(r"‹(.+?)›", r"*\1*", linked(text))


def sources(short: str, full: Sequence[str]) -> list[str]:
    """The table's source where the findings do not say the same at more length, then theirs."""
    known = [text for text in full if not any(text != other and other.startswith(text) for other in full)]
    told = " ".join(known)
    return known if all(part.split()[0] in told for part in short.split("; ")) else [short, *known]


def remedy(words: Words) -> str:
    """The knobs that findings of a code can turn themselves."""
    if not words.remedy:
        return "none, the change is yours to make"
    knobs = ", ".join(f"`{knob}`" for knob in words.remedy)
    some = "" if words.num_with_remedy == words.num_ways else ", in some of its findings"
    return f"{knobs}{some} ([what it does](remedies.md))"


def evidence(words: Words) -> str:
    """Names of the numbers, linked where they are quantities."""
    from thermoclaw.quantities import TABLE

    pages = {name: "quantities.md" if name in TABLE else "reading_findings.md" for name in words.evidence}
    return ", ".join(f"[`{name}`]({page}#{name})" for name, page in pages.items())


def evidence_names() -> str:
    """Every name of evidence that is no quantity, what it is, and who gives it."""
    from thermoclaw.evidence import EVIDENCE

    told = words_of_findings()
    rows = []
    for name, text in EVIDENCE.items():
        codes = [f"[`{code}`](recommendations.md#{code})" for code, words in told.items() if name in words.evidence]
        rows.append((f'<span id="{name}">`{name}`</span>', plain(text), ", ".join(codes) or "a detector"))
    return "\n".join(table(("name", "what it is", "in findings of"), rows))


# -- ranks ------------------------------------------------------------------------------------------------------------


def rank_of() -> dict[str, int]:
    """Code → how far from the root, 1 is the root."""
    from thermoclaw.diagnosis import engine

    return {code: rank + 1 for code, rank in engine._RANK.items()}


def rank(code: str, ranks: dict[str, int]) -> str:
    """One rule's rank in words."""
    from thermoclaw.diagnosis import engine

    told = f"{ranks[code]} of {max(ranks.values())}" if code in ranks else "none of its own"
    if code in engine._ENDS:
        return f"{told}; it explains no other finding"
    if code == "lr_too_high":
        told += ", and 1 where the rate was too high from the first step or was set so later"
    return f"{told} ([what that means](diagnosis.md#root-cause-before-symptom))"


def ranks() -> str:
    """Which codes stand at which rank."""
    from thermoclaw.diagnosis import engine

    by_rank: dict[int, list[str]] = {}
    for code, place in rank_of().items():
        by_rank.setdefault(place, []).append(code)
    rows = []
    for place, codes in sorted(by_rank.items()):
        names = ", ".join(f"[`{code}`](recommendations.md#{code})" for code in codes)
        rows.append((str(place), names, f"{(place - 1) * engine._SLACK} steps"))
    ends = ", ".join(f"`{code}`" for code in engine._ENDS)
    told = table(("rank", "findings", "handicap"), rows)
    return "\n".join([*told, "", f"These explain no other finding: {ends}."])


def blind() -> str:
    """Codes of the catalogue that no rule has."""
    from thermoclaw.diagnosis.rules import RULES

    known = {rule.code for rule in RULES}
    codes = [code for code in dict.fromkeys((*zoo_tables.zoo("cases").CATALOGUE, *CATALOGUE)) if code not in known]
    rows = [(f"`{code}`", CATALOGUE.get(code, "–"), zoo_tables.recall(code, key="detected")) for code in codes]
    heads = ("code", "what it is", "runs of that kind of which anything was said")
    return "\n".join(table(heads, rows)) if rows else "Every failure of the catalogue has a rule."


def level_shift() -> str:
    """What the test for a new level costs in false alarms where losses are exchangeable."""
    from thermoclaw.diagnosis.rules.jumps import AFTER, BEFORE

    ways = comb(BEFORE + AFTER, AFTER)  # of choosing the ranks of the last ones; one before may stand among the top
    return (
        f"If the last {AFTER} losses and the {BEFORE} before them came from one distribution in any order, all {AFTER} "
        f"would lie above all {BEFORE} but one in {AFTER + 1} of C({BEFORE + AFTER}, {AFTER}) = {ways:,} windows, one "
        f"in {ways // (AFTER + 1):,}, whatever that distribution is."
    )


PARTS: dict[str, Callable[[], str]] = {
    "rules": rules,
    "finding-tests": finding_tests,
    "evidence-names": evidence_names,
    "ranks": ranks,
    "blind": blind,
    "level-shift": level_shift,
}
