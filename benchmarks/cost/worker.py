"""One arm: a process that takes training steps when it is told to and answers with their times.

Commands are lines of JSON on standard input, answers lines on standard output that begin with `ANSWER`. The process
runs in whichever environment its python belongs to; all it needs is torch and the instrument.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ANSWER = "@overhead "


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A model, its optimizer and one instrument; `spec` has the fields of `arms.Arm`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        from cost import instruments, models

        torch.set_num_threads(spec["threads"])
        self.torch, self.models, self.spec = torch, models, spec
        self.model = models.build(spec["model"], dtype=getattr(torch, spec["dtype"]))
        self.params = list(self.model.parameters())
        self.optimizer = models.make_optimizer(spec["optimizer"], self.params)
        self.generator = torch.Generator().manual_seed(1)
        self.real = models.has_forward(spec["model"])
        if not self.real:
            models.set_gradients(self.model, self.generator)
        self.num_bytes = sum(2 * p.numel() * p.element_size() for p in self.params)  # gradients and parameters
        self.read_name, self.read = instruments.read_memory(self.num_bytes)
        self.instrument = instruments.INSTRUMENTS[spec["instrument"]](spec["settings"])
        self.rss_before_bytes = resident_bytes()
        self.instrument.attach(self.model, self.optimizer)

    def about(self) -> dict[str, Any]:
        """What was built."""
        return {
            "version": self.instrument.version,
            "cost_is": self.instrument.cost_is,
            "num_params": sum(p.numel() for p in self.params),
            "num_tensors": len(self.params),
            "read_bytes": self.num_bytes,
            "read_by": self.read_name,
        }

    def step(self) -> dict[str, float]:
        """One training step, each part timed; the clip changes nothing."""
        torch, instrument, watch = self.torch, self.instrument, self.instrument.watch
        clock = time.perf_counter
        start = clock()
        self.read()
        ready = clock()
        loss: Any = torch.zeros(())
        if self.real:
            spec = self.spec
            inputs, targets = self.models.make_batch(
                spec["model"], batch=spec["batch"], tokens=spec["tokens"], generator=self.generator
            )
            loss = instrument.backward(self.model, inputs, targets)
        passed, in_passes = clock(), watch.lap()
        torch.nn.utils.clip_grad_norm_(self.params, 1e9)
        clipped = clock()
        instrument.before_step()
        before = clock()
        self.optimizer.step()
        stepped, in_step = clock(), watch.lap()
        instrument.after_step(loss)
        done = clock()
        watch.lap()
        if self.real:
            self.optimizer.zero_grad()
        return {
            "read_s": ready - start,
            "forward_backward_s": passed - ready - in_passes,
            "clip_s": clipped - passed,
            "optimizer_s": stepped - before - in_step,
            "instrument_s": in_passes + (before - clipped) + in_step + (done - stepped),
            "total_s": (passed - ready) + (done - clipped),
        }

    def steps(self, count: int) -> dict[str, Any]:
        """So many steps in a row."""
        return {"rows": [self.step() for _ in range(count)]}

    def state(self) -> dict[str, Any]:
        """Memory now, and the values that the host reads in one step."""
        from cost.instruments import count_reads

        return {
            "held_bytes": self.instrument.held_bytes(),
            "rss_bytes": resident_bytes() - self.rss_before_bytes,
            "chosen": self.instrument.chosen(),
            "reads": count_reads(self.step),
        }

    def curve(self, counts: list[int]) -> dict[str, Any]:
        """Memory after each of these numbers of steps with fixed gradients."""
        done, points = 0, []
        start = 0
        for count in counts:
            for _ in range(count - done):
                self.instrument.before_step()
                self.optimizer.step()
                self.instrument.after_step(self.torch.zeros(()))
            done = count
            start = start or resident_bytes()
            gained = resident_bytes() - start
            points.append({"steps": done, "held_bytes": self.instrument.held_bytes(), "rss_bytes": gained})
        return {"points": points}


def say(what: dict[str, Any]) -> None:
    """Send an answer."""
    print(ANSWER + json.dumps(what), flush=True)


def failure(error: BaseException, caught: list[Any]) -> dict[str, Any]:
    """An answer that says what went wrong, with the place and the warnings that came before it."""
    while error.__context__ is not None:
        error = error.__context__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}, {frame.name}"
    told = list(dict.fromkeys(f"{type(w.message).__name__}: {w.message}" for w in caught))
    return {"error": f"{type(error).__name__}: {error} ({place})", "warnings": told[:8]}


def main() -> None:
    """Build what the command line says, then answer commands until the input ends."""
    spec = json.loads(sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            worker = Worker(spec)
            say(worker.about())
            for line in sys.stdin:
                command = json.loads(line)
                answer = getattr(worker, command.pop("do"))
                say(answer(**command))
        except Exception as error:
            say(failure(error, caught))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
