"""What the tests of run directories share: a small run that is kept, and ways to compare it with what was kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from thermoclaw import Observer, Record


class Training:
    """A small model that is trained and observed."""

    def __init__(self, model: nn.Module | None = None, *, seed: int = 0, **settings: Any) -> None:
        torch.manual_seed(seed)
        self.model = model or nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.observer = Observer(self.model, self.optimizer, **settings)

    def go(self, steps: int) -> Training:
        for _ in range(steps):
            loss = self.model(torch.randn(8, 6)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.observer.step(loss=loss.detach())
        return self


def plain(data: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(data, default=str))


def assert_same_rows(mine: Record, theirs: Record) -> None:
    """To the bit, and with the same names."""
    assert mine.steps.tolist() == theirs.steps.tolist()
    assert mine.layer_values.dtype == theirs.layer_values.dtype
    assert mine.layer_values.tobytes() == theirs.layer_values.tobytes()
    assert mine.run_values.tobytes() == theirs.run_values.tobytes()
    assert mine.layers == theirs.layers


def assert_same_record(mine: Record, theirs: Record) -> None:
    assert_same_rows(mine, theirs)
    other = {key for key in {*mine.meta, *theirs.meta} if plain(mine.meta.get(key)) != plain(theirs.meta.get(key))}
    assert not other, [(key, mine.meta.get(key), theirs.meta.get(key)) for key in sorted(other)]
    assert plain(mine.events) == plain(theirs.events), (mine.events, theirs.events)


def assert_holds(mine: Record, theirs: Record) -> None:
    """Each row of theirs is in mine, to the bit."""
    at = np.searchsorted(mine.steps, theirs.steps)
    assert (mine.steps[np.minimum(at, len(mine) - 1)] == theirs.steps).all()
    assert mine.layer_values[at].tobytes() == theirs.layer_values.tobytes()
    assert mine.run_values[at].tobytes() == theirs.run_values.tobytes()


def program(body: str, *arguments: str) -> list[str]:
    """The command of a Python program that may use what is here."""
    head = (
        "import sys, time, torch\nfrom pathlib import Path\nfrom kept_runs import Training\ntorch.set_num_threads(1)\n"
    )
    code = f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    return [sys.executable, "-c", f"import sys\n{code}{head}{textwrap.dedent(body)}", *arguments]


def run_program(body: str, *arguments: str) -> str:
    done = subprocess.run(program(body, *arguments), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def size_of(folder: Path) -> int:
    """Bytes of all files; one may go away meanwhile."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def keep_run(
    folder: Path, *, weight_decay: float = 0.01, steps: int = 200, width: int = 24, close: bool = True
) -> Path:
    """A regression that goes well, or that decay erodes, kept in a directory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
    target = torch.randn(8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=weight_decay)
    observer = Observer(model, optimizer, run_dir=folder)
    for _ in range(steps):
        x = torch.randn(32, 8)
        loss = (model(x) - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss.detach())
    observer.close()
    return folder


def command(*arguments: str, refuse: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`thermoclaw ARGUMENTS` in a process of its own, in which the packages to refuse cannot be imported."""
    code = textwrap.dedent(
        f"""
        import sys
        class Refuse:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in {refuse.split()!r}: raise ImportError(f"{{name}} is refused")
        sys.meta_path.insert(0, Refuse())
        from thermoclaw.cli import main
        sys.exit(main())
        """
    )
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, encoding="utf-8", env=env, timeout=120
    )
