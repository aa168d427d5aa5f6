"""What a step of the monitor does on the device: a row of numbers and a sample of values, by parameter. Nothing waits.

Legend: P parameters on one device, C columns, M (MOST_SAMPLED) values looked at of each, K kept of each, T steps kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thermoclaw.phase import lattice
from thermoclaw.phase.config import MOST_SAMPLED
from thermoclaw.phase.rows import Piece


@dataclass(frozen=True)
class Entry:
    """A parameter, or an array that stands for one, as it is at a step."""

    layer: str
    name: str
    values: Tensor
    grad: Tensor | None = None
    is_weight: bool = True

    def signature(self) -> tuple[object, ...]:
        """What must stay the same for samples of two steps to be comparable."""
        return (self.layer, self.name, tuple(self.values.shape), self.values.dtype, self.values.device)


def real(x: Tensor) -> Tensor:
    """A flat view of real numbers, two for a complex one."""
    x = x.detach().resolve_conj()
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)


def sample_places(num: int, count: int, *, width: int, seed: int) -> np.ndarray:
    """`count` different places among `num` groups of `width` neighbors, evenly spread, in an order of chance."""
    rng = np.random.default_rng(seed)
    groups = count // width
    edges = np.linspace(0, num, groups + 1).astype(np.int64)
    places = edges[:-1] + (rng.random(groups) * np.diff(edges)).astype(np.int64)
    rng.shuffle(places)
    return (places[:, None] * width + np.arange(width)).ravel()


class SampleRing:
    """The last T samples, on the device."""

    def __init__(self, steps: int, width: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._values = torch.full((steps, width), float("nan"), device=device, dtype=dtype)
        self._count = 0

    def put(self, sample: Tensor) -> None:
        """Write over the oldest."""
        self._values[self._count % len(self._values)].copy_(sample)
        self._count += 1

    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._values.numel() * self._values.element_size()

    def read(self) -> np.ndarray:
        """What is held, oldest first [≤ T, width]. Waits."""
        held = self._values.cpu().to(torch.float64).numpy()
        size = len(held)
        return held[: self._count] if self._count <= size else np.roll(held, -(self._count % size), axis=0)


class DevicePart:
    """Measures the parameters that are on one device.

    Args:
        entries: the parameters.
        keep: K, values of each that are remembered; None keeps all of them.
        steps, grad_steps: T for weights and for gradients.
    """

    def __init__(self, entries: Sequence[Entry], *, keep: int | None, steps: int, grad_steps: int) -> None:
        self.device = entries[0].values.device
        self._exact = keep is None
        doubles = any(e.values.dtype in (torch.float64, torch.complex128) for e in entries)
        self._dtype = torch.float64 if doubles else torch.float32
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64  # of the rows
        self._places: list[Tensor | None] = []
        self.pieces: list[Piece] = []
        for number, entry in enumerate(entries):
            self._add(entry, number, keep)
        sizes = [min(p.size, MOST_SAMPLED) for p in self.pieces]
        self._sizes = torch.tensor(sizes, device=self.device)
        self._valid = torch.arange(max(sizes), device=self.device) < self._sizes[:, None]
        self._is_weight = torch.tensor([p.is_weight for p in self.pieces], device=self.device)
        self._kept = max(p.kept for p in self.pieces)
        self._nan = torch.full((), float("nan"), device=self.device, dtype=self.wide)
        self.width = sum(p.size for p in self.pieces) if self._exact else len(self.pieces) * self._kept
        self.weights = SampleRing(steps, self.width, device=self.device, dtype=self._dtype)
        self.gradients = SampleRing(grad_steps, self.width, device=self.device, dtype=self._dtype)
        self._first: Tensor | None = None
        self._previous: Tensor | None = None

    def _add(self, entry: Entry, number: int, keep: int | None) -> None:
        width = 2 if entry.values.is_complex() else 1
        size = entry.values.numel() * width
        places = None
        if size > MOST_SAMPLED:
            chosen = sample_places(entry.values.numel(), MOST_SAMPLED, width=width, seed=number)
            places = torch.from_numpy(chosen).to(self.device)
        self._places.append(places)
        kept = size if keep is None else min(size, keep // width * width)
        self.pieces.append(Piece(entry.layer, entry.name, size, kept, width == 2, entry.is_weight))

    @torch.no_grad()
    def step(self, entries: Sequence[Entry]) -> Tensor:
        """Look at the parameters as they are now; their row [P, C], on the device."""
        sample = torch.zeros(self._valid.shape, device=self.device, dtype=self._dtype)
        deltas, param_sq, grad_sq = [], [], []
        for i, entry in enumerate(entries):
            x = real(entry.values)
            deltas.append((x - x.round()).abs_().amax())
            param_sq.append(_square(x))
            sample[i, : self.pieces[i].size].copy_(self._pick(x, i, MOST_SAMPLED))
            g = _usable(entry)
            grad_sq.append(self._nan if g is None else _square(g))
        if self._exact:
            self._put_all(entries)
        else:
            self.weights.put(sample[:, : self._kept].reshape(-1))
            self.gradients.put(self._slopes(entries).reshape(-1))
        head = [torch.stack([v.to(self.wide) for v in column]) for column in (deltas, param_sq, grad_sq)]
        order = torch.where(self._is_weight, orders(sample, self._valid), float("nan")).to(self.wide)
        return torch.stack([*head, order, *self._turns(sample)], dim=1)

    def _pick(self, flat: Tensor, i: int, count: int) -> Tensor:
        places = self._places[i]
        return flat[:count] if places is None else flat.index_select(0, places[:count])

    def _slopes(self, entries: Sequence[Entry]) -> Tensor:
        """The kept values of the gradients [P, K]; NaN where there is none."""
        slopes = torch.zeros((len(entries), self._kept), device=self.device, dtype=self._dtype)
        for i, entry in enumerate(entries):
            g = _usable(entry)
            slope = slopes[i, : self.pieces[i].kept]
            slope.copy_(self._pick(g, i, len(slope))) if g is not None else slope.fill_(float("nan"))
        return slopes

    def _put_all(self, entries: Sequence[Entry]) -> None:
        self.weights.put(torch.cat([real(e.values).to(self._dtype) for e in entries]))
        slopes = [torch.full_like(real(e.values), float("nan")) if (g := _usable(e)) is None else g for e in entries]
        self.gradients.put(torch.cat([g.to(self._dtype) for g in slopes]))

    def _turns(self, sample: Tensor) -> list[Tensor]:
        """Inner products of the sample with itself, the one before and the first: real and imaginary parts."""
        now = sample.to(self.wide)
        if self._first is None or self._previous is None:
            self._first = self._previous = now
        square = (now**2).sum(1)
        columns = [square, *_inner(self._previous, now), *_inner(self._first, now)]
        self._previous = now
        return columns

    def columns(self) -> list[slice]:
        """By parameter, where its values are in a sample."""
        if self._exact:
            ends = np.cumsum([p.size for p in self.pieces])
            return [slice(end - p.size, end) for end, p in zip(ends, self.pieces, strict=True)]
        return [slice(i * self._kept, i * self._kept + p.kept) for i, p in enumerate(self.pieces)]

    def num_bytes(self) -> int:
        """Bytes that are held on the device between steps."""
        held = [t for t in (self._first, self._previous, *self._places) if t is not None]
        return self.weights.num_bytes() + self.gradients.num_bytes() + sum(t.numel() * t.element_size() for t in held)


def _usable(entry: Entry) -> Tensor | None:
    """The gradient as real numbers, if it is a dense one of the parameter's shape."""
    g = entry.grad
    if g is None or g.layout is not torch.strided or g.shape != entry.values.shape or g.device != entry.values.device:
        return None
    return real(g) if g.is_complex() == entry.values.is_complex() else None


def _square(x: Tensor) -> Tensor:
    """Sum of squares, without overflow in half precision."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dtype=wide).square()


def _inner(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Σ conj(a)·b of rows that hold real and imaginary parts in turn; of real rows the imaginary part means nothing."""
    if a.shape[1] % 2:
        a, b = (torch.nn.functional.pad(x, (0, 1)) for x in (a, b))
    turned = a[:, 0::2] * b[:, 1::2] - a[:, 1::2] * b[:, 0::2]
    return (a * b).sum(1), turned.sum(1)


def orders(sample: Tensor, valid: Tensor) -> Tensor:
    """`lattice.find_lattice(...).order` of each row of [P, M]; `valid` says which values count."""
    w = torch.where(valid, sample, 0.0).to(torch.float32)
    num = valid.sum(1)
    w = w / w.abs().amax(1, keepdim=True).clamp_min(1e-38)
    rms = ((w**2).sum(1) / num).sqrt()
    kept = (w.abs() >= lattice.ZERO * rms[:, None]) & valid
    count = kept.sum(1)
    mean = (w * kept).sum(1) / count
    rest = (w - mean[:, None]) * kept
    std = ((rest**2).sum(1) / count).sqrt()
    alike = std <= lattice.ZERO * ((w**2 * kept).sum(1) / count).sqrt()
    z = rest / std.clamp_min(1e-38)[:, None]
    places = ((z + lattice.REACH) * (lattice.NUM_BINS / (2 * lattice.REACH))).nan_to_num(-1.0, -1.0, -1.0).floor()
    inside = kept & (places >= 0) & (places < lattice.NUM_BINS)
    first = torch.arange(len(w), device=w.device)[:, None] * lattice.NUM_BINS
    flat = (places.clamp(0, lattice.NUM_BINS - 1).to(torch.int64) + first).reshape(-1)
    counts = torch.zeros(len(w) * lattice.NUM_BINS, device=w.device).index_add_(0, flat, inside.to(w.dtype).reshape(-1))
    waves = torch.fft.rfft(counts.view(len(w), -1), n=lattice.PADDED)[:, lattice.FIRST : lattice.LAST + 1]
    order = (waves.abs().amax(1) / count).clamp(max=1.0)
    zeros = 1 - count / num
    order = torch.where(alike, torch.where(zeros >= lattice.FEWEST_ZEROS, 1.0, float("nan")), order)
    enough = (num >= lattice.LEAST_VALUES) & (count >= lattice.LEAST_VALUES // 2) & torch.isfinite(sample).all(1)
    return torch.where(enough, order, float("nan"))
