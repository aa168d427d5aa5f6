"""Programs: what is trained. Development and held-out ones share neither data nor model code."""

from __future__ import annotations

from benchmarks.zoo.programs import (
    digits,
    imagery,
    languages,
    measures,
    photos,
    points,
    relations,
    signals,
    source,
    tables,
    text,
    transfer,
    wording,
    writing,
)
from benchmarks.zoo.programs.program import Program

DEVELOPMENT: tuple[Program, ...] = (
    *digits.PROGRAMS,
    *text.PROGRAMS,
    *transfer.PROGRAMS,
    *tables.PROGRAMS,
    *photos.PROGRAMS,
    *source.PROGRAMS,
    *imagery.PROGRAMS,
    *points.PROGRAMS,
    *writing.PROGRAMS,
    *signals.PROGRAMS,
    *relations.PROGRAMS,
    *wording.PROGRAMS,
)
HELD_OUT: tuple[Program, ...] = (*measures.PROGRAMS, *languages.PROGRAMS)
PROGRAMS: dict[str, Program] = {program.name: program for program in (*DEVELOPMENT, *HELD_OUT)}
