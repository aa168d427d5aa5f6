"""Programs: what is trained. Development and held-out ones share no model code, and no data in one form."""

from __future__ import annotations

from benchmarks.zoo.programs import (
    catalog,
    choices,
    depot,
    digits,
    everyday,
    imagery,
    languages,
    lore,
    measures,
    office,
    photos,
    plays,
    points,
    relations,
    rota,
    scenes,
    series,
    signals,
    source,
    staples,
    tables,
    text,
    transfer,
    trees,
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
    *measures.PROGRAMS,
    *languages.PROGRAMS,
    *lore.PROGRAMS,
    *trees.PROGRAMS,
    *plays.PROGRAMS,
    *series.PROGRAMS,
    *scenes.PROGRAMS,
    *choices.PROGRAMS,
    *everyday.PROGRAMS,
    *staples.PROGRAMS,
    *catalog.PROGRAMS,
    *office.PROGRAMS,
)
HELD_OUT: tuple[Program, ...] = (*rota.PROGRAMS, *depot.PROGRAMS)
PROGRAMS: dict[str, Program] = {program.name: program for program in (*DEVELOPMENT, *HELD_OUT)}
