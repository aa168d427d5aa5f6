"""The words of findings, read from the source of the rules: meaning, advice, evidence, remedy, for a page to list.

A finding is made with its numbers in place. Here each number is replaced by the name that the rule has for it, `‹lr›`,
or by `…` where it is computed on the spot. Nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

RULES = Path(__file__).resolve().parent.parent / "src" / "thermoclaw" / "diagnosis" / "rules"


@dataclass
class Words:
    """What the findings of one code say, in the order of the source, nothing twice."""

    meaning: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    remedy: list[str] = field(default_factory=list)
    num_ways: int = 0
    num_with_remedy: int = 0


@cache
def words_of_findings() -> dict[str, Words]:
    """Code → words, for every finding that a rule makes."""
    told: dict[str, Words] = {}
    for path in sorted(RULES.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        shared = _assigned(module.body)
        for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
            for code, given in _findings(function):
                _add(told.setdefault(code, Words()), given, {**shared, **_assigned(list(ast.walk(function)))})
    return told


def _findings(function: ast.FunctionDef) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """Code and keywords of each finding that is made in a function."""
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("tell", "Finding"):
            given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            code = given.get("code") or (call.args[1] if call.func.id == "tell" and len(call.args) > 1 else None)
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                yield code.value, given


def _assigned(nodes: Sequence[ast.AST]) -> dict[str, ast.expr]:
    """What is assigned to plain names, so that `advice=advice` can be followed."""
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _add(words: Words, given: dict[str, ast.expr], names: dict[str, ast.expr]) -> None:
    words.num_ways += 1
    for part in ("meaning", "advice", "source"):
        if part in given:
            _extend(getattr(words, part), _texts(given[part], names))
    evidence = _followed(given.get("evidence"), names)
    if isinstance(evidence, ast.Dict):
        _extend(words.evidence, [key.value for key in evidence.keys if isinstance(key, ast.Constant)])
    knobs = _knobs(_followed(given.get("remedy"), names))
    words.num_with_remedy += bool(knobs)
    _extend(words.remedy, knobs)


def _extend(known: list[str], new: list[str]) -> None:
    known += [text for text in dict.fromkeys(new) if text and text not in known]


def _followed(node: ast.expr | None, names: dict[str, ast.expr]) -> ast.expr | None:
    return names.get(node.id, node) if isinstance(node, ast.Name) else node


def _knobs(node: ast.expr | None) -> list[str]:
    """First arguments of each `Remedy(…)` inside an expression."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)] if node is not None else []
    firsts = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Remedy" and call.args]
    return [first.value for first in firsts if isinstance(first, ast.Constant)]


def _texts(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """Every text that an expression can be: both sides of a choice, all values of a table."""
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, names), *_texts(node.orelse, names)]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
        return [text for value in node.value.values for text in _texts(value, names)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _texts(node.left, names) for b in _texts(node.right, names)]
    if isinstance(node, ast.Name) and node.id in names:
        return _texts(names[node.id], {k: v for k, v in names.items() if k != node.id})
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else _blank(p, names) for p in node.values]
        return ["".join(parts)]
    return ["…"]


def _blank(node: ast.expr, names: dict[str, ast.expr]) -> str:
    """What stands for a value that only a run knows."""
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Attribute):
        return f"‹{inner.attr.replace('_', ' ')}›"
    if not isinstance(inner, ast.Name):
        return "…"
    text = names.get(inner.id)
    text = text.body if isinstance(text, ast.IfExp) else text
    if isinstance(text, ast.JoinedStr):
        return _texts(text, {k: v for k, v in names.items() if k != inner.id})[0]
    return f"‹{inner.id.replace('_', ' ')}›"
