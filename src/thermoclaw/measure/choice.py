"""Which backend sketches: the fused one where it can be had and gives the right numbers, the torch one elsewhere."""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.fused import PARAMETERS, FusedBackend
from thermoclaw.measure.sharded import local
from thermoclaw.measure.sketch import Sketcher
from thermoclaw.measure.sketched import SketchBackend
from thermoclaw.measure.sums import Backend

logger = logging.getLogger("thermoclaw")

_OLDEST = (7, 0)  # compute capability


def sketching_backend(units: list[Unit], *, size: int) -> Backend:
    """The fused backend where it can be had, the torch one elsewhere; on CUDA the reason is logged once."""
    device = units[0].device
    if device.type != "cuda" or os.environ.get("THERMOCLAW_FUSED", "1") == "0":
        return SketchBackend(units, size=size)
    reason = unsupported(units) or unusable(device, size)
    if reason is None:
        try:
            return FusedBackend(units, size=size)
        except Exception as error:  # whatever a compiler or driver may raise: there is another way to measure
            reason = _first_line(error)
    _say(reason)
    return SketchBackend(units, size=size)


@functools.cache
def _say(reason: str) -> None:
    logger.warning(
        "thermoclaw: measuring with torch operations, at a higher cost, as the fused CUDA kernels cannot be used: %s",
        reason,
    )


def unsupported(units: list[Unit]) -> str | None:
    """What about these parameters the kernels cannot measure, if anything."""
    for unit in units:
        for p in unit.params:
            if p.dtype not in PARAMETERS:
                return f"there are {str(p.dtype).removeprefix('torch.')} parameters"
            held = local(p.detach())
            try:
                has_memory = not held.numel() or held.data_ptr() != 0
            except RuntimeError:
                has_memory = False
            if not has_memory:
                return f"parameters of class {type(p).__name__} have no memory of their own"
    return None


@functools.cache
def unusable(device: torch.device, size: int) -> str | None:
    """Why the kernels cannot be used on a device, if so; compiles them, tries them and waits for the result."""
    if torch.version.hip is not None:
        return "they were never tried on ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than {_OLDEST[0]}.{_OLDEST[1]}"
    try:
        with torch.no_grad():
            return _trial(device, size)
    except Exception as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    logger.debug("thermoclaw: the fused kernels failed", exc_info=error)
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


def _trial(device: torch.device, size: int) -> str | None:
    """Two steps of a tiny model that does not move, against the same numbers from torch operations on the host."""
    counts, dtypes = [[65 * size + 5, 900, 700], [size // 2]], (torch.float32, torch.bfloat16, torch.float16)
    tensors: list[list[Tensor]] = [[], []]  # gradients and parameters
    for count, dtype in zip((n for row in counts for n in row), (*dtypes, torch.float32), strict=True):
        x = torch.arange(count, dtype=torch.float32).mul_(0.7).cos_()
        tensors[1].append(x.to(device=device, dtype=dtype))
        tensors[0].append(x.square().sub_(0.4).to(device=device, dtype=dtype))
        tensors[1][-1].grad = tensors[0][-1]
    units = [Unit(0, 0, device, tuple(tensors[1][:3])), Unit(0, 0, device, tuple(tensors[1][3:]))]
    backend = FusedBackend(units, size=size)
    row = torch.full((len(units), len(RAW_COLUMNS)), float("nan"), device=device, dtype=torch.float64)
    for _ in range(2):
        backend.read_gradients()
        backend.read_parameters(row, lrs={})
    want, expected = _on_host(tensors, counts, size)
    got = row[:, [RAW[name] for name in expected]].cpu()
    same = torch.allclose(got, torch.stack([*expected.values()], dim=1), rtol=1e-4, atol=1e-4)
    if same and torch.allclose(backend._pack.cpu().double(), want, rtol=1e-4, atol=1e-4):
        return None
    return "they give other numbers than torch operations on this machine"


def _on_host(tensors: list[list[Tensor]], counts: list[list[int]], size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """What a trial should find: the sketches [2, U, p] of gradients and parameters, and columns of the row [U]."""
    sketcher = Sketcher(counts, size=size, device=torch.device("cpu"), dtype=torch.float64)
    want = torch.zeros(2, len(counts), size, dtype=torch.float64)
    squares = torch.zeros(2, len(counts), dtype=torch.float64)
    for which in (0, 1):
        host = [x.cpu().double() for x in tensors[which]]
        for u, mine in enumerate((host[:3], host[3:])):
            sketcher.sketch(u, [*mine], want[which, u])
            squares[which, u] = sum(x.dot(x) for x in mine)
    g, p = want
    products = {"gs_gs": (g * g).sum(1), "g_p": (g * p).sum(1), "ps_ps": (p * p).sum(1)}
    expected = {"g_g": squares[0], "p_p": squares[1], **products, "g_g1": products["gs_gs"]}
    expected |= {name: torch.zeros_like(squares[0]) for name in ("d_d", "d_p", "f_f", "g_d", "skipped")}
    return want, expected
