"""Programs: what is trained. Development and held-out ones share neither data nor model code."""

from __future__ import annotations

from benchmarks.zoo.programs import digits, photos, source, tables, text, transfer
from benchmarks.zoo.programs.program import Program

DEVELOPMENT: tuple[Program, ...] = (*digits.PROGRAMS, *text.PROGRAMS, *transfer.PROGRAMS)
HELD_OUT: tuple[Program, ...] = (*tables.PROGRAMS, *photos.PROGRAMS, *source.PROGRAMS)
PROGRAMS: dict[str, Program] = {program.name: program for program in (*DEVELOPMENT, *HELD_OUT)}
