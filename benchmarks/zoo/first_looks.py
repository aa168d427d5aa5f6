"""What each set of held-out programs gave when it was judged for the first time. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_first_look(path: Path, told: Mapping[str, Any]) -> bool:
    """Add held-out figures to those of earlier sets, unless one of these programs was judged before.

    Args:
        path: of the list; made where there is none.
        told: what `report.document` makes, with `environment`.

    Returns:
        Whether they were added.
    """
    looks = json.loads(path.read_text()) if path.exists() else []
    part = told["held_out"]
    programs = sorted(part["by_program"])
    if any(set(programs) & set(look["programs"]) for look in looks):
        return False
    when = {key: told["environment"][key] for key in ("date", "revision")}
    looks.append({**when, "programs": programs, "totals": part["totals"]})
    path.write_text(json.dumps(looks, indent=1) + "\n")
    return True
