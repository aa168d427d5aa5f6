"""Weights brought to the host for a summary: all of them where they are few, an even sample where they are many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thermoclaw.layers import mesh_of, owned_parameters
from thermoclaw.phase.describe import Values
from thermoclaw.phase.measure import Entry, real, sample_places
from thermoclaw.phase.rows import Piece

MOST_VALUES = 1 << 22  # of all parameters, more or less
LEAST_VALUES = 1 << 16  # of one parameter, if it has as many
MOST_ROWS, MOST_COLUMNS = 1024, 4096

ARRAY = "weights"


def model_entries(model: nn.Module) -> list[Entry]:
    """Every floating-point parameter with elements, frozen ones included, by the layer that owns it.

    Raises:
        ValueError: a parameter is spread over processes, or there is none.
    """
    entries = []
    for layer, owned in owned_parameters(model):
        measurable = [(n, p) for n, p in owned if _is_number(p)]
        has_matrix = any(p.dim() >= 2 for _, p in measurable)
        for name, p in measurable:
            if mesh_of(p) is not None:
                raise ValueError(
                    f"{name} is spread over several processes: gather it and pass arrays to step_manual(), or leave "
                    "the phase monitor out"
                )
            entries.append(Entry(layer, name, p.detach(), p.grad, has_matrix and p.dim() >= 2))
    return entries


def array_entries(weights: Any, gradients: Any) -> list[Entry]:
    """Arrays of any framework that NumPy can read, one or a mapping of names to them.

    Raises:
        TypeError: gradients are no mapping where weights are one, or the other way round.
        ValueError: there is no number in them, or they are no numbers.
    """
    named = isinstance(weights, Mapping)
    if gradients is not None and isinstance(gradients, Mapping) is not named:
        raise TypeError("weights and gradients must both be arrays, or both be mappings of names to arrays")
    arrays = dict(weights) if named else {ARRAY: weights}
    slopes = dict(gradients or {}) if named else {ARRAY: gradients}
    entries = []
    for name, array in arrays.items():
        values = as_tensor(array, str(name))
        if values.numel():
            slope = slopes.get(name)
            grad = None if slope is None else as_tensor(slope, f"the gradient of {name}")
            if grad is not None and grad.numel() == values.numel():
                grad = grad.reshape(values.shape)
            entries.append(Entry(str(name), str(name), values, grad, not named or values.dim() >= 2))
    if not entries:
        raise ValueError("step_manual() needs weights: the arrays given have no elements")
    return entries


def as_tensor(array: Any, name: str) -> Tensor:
    """An array as a tensor on the host that shares its memory where it can."""
    x = np.asarray(array)
    if x.dtype.kind in "biu":
        x = x.astype(np.float64)
    elif x.dtype.kind not in "fc":
        try:  # bfloat16 and its like, which NumPy does not know
            x = x.astype(np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is an array of {x.dtype}, not of numbers") from None
    elif x.dtype.itemsize > 8 * (1 + (x.dtype.kind == "c")):
        x = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    native = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _is_number(p: Tensor) -> bool:
    """Whether a parameter has elements, and they are no codes of a quantized format."""
    if nn.parameter.is_lazy(p):
        return False
    wide = p.is_complex() or p.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return wide and p.numel() > 0 and p.device.type != "meta"


def host_values(entries: Sequence[Entry], pieces: Sequence[Piece], *, everything: bool) -> Iterator[Values]:
    """The weights as they are now, one parameter after the other. Waits.

    Args:
        entries: the parameters, with their values.
        pieces: how they are measured.
        everything: no sample, however large a parameter is.
    """
    most = max(MOST_VALUES // max(len(entries), 1), LEAST_VALUES)
    for number, (entry, piece) in enumerate(zip(entries, pieces, strict=True)):
        flat = real(entry.values)
        if not everything and len(flat) > most:
            width = 2 if piece.is_complex else 1
            places = sample_places(len(flat) // width, most // width * width, width=width, seed=number)
            flat = flat.index_select(0, torch.from_numpy(places).to(flat.device))
        matrix = None
        if entry.values.dim() >= 2 and not piece.is_complex and not everything:
            matrix = _to_host(_part(entry.values.detach().flatten(1), number))
        yield Values(piece, _to_host(flat), matrix)


def _part(matrix: Tensor, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    for dim, most in enumerate((MOST_ROWS, MOST_COLUMNS)):
        if matrix.shape[dim] > most:
            chosen = np.sort(rng.permutation(matrix.shape[dim])[:most])
            matrix = matrix.index_select(dim, torch.from_numpy(chosen).to(matrix.device))
    return matrix


def _to_host(x: Tensor) -> np.ndarray:
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return wide.cpu().numpy().astype(np.float64)


def extract_weights(model: nn.Module) -> np.ndarray:
    """All parameters of a model as one array on the host. Waits for the device.

    Example:
        >>> len(extract_weights(nn.Linear(4, 2)))
        10
    """
    return _flat(list(model.parameters()))


def extract_gradients(model: nn.Module) -> np.ndarray | None:
    """The gradients of those parameters that have one, as one array on the host; None where none has.

    Example:
        >>> extract_gradients(nn.Linear(4, 2)) is None
        True
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return _flat(gradients) if gradients else None


def _flat(tensors: Sequence[Tensor]) -> np.ndarray:
    dense = [t.detach().to_dense() if t.layout is not torch.strided else t.detach() for t in tensors]
    wide = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in dense]
    return np.concatenate([t.resolve_conj().cpu().numpy().ravel() for t in wide]) if wide else np.empty(0, np.float32)
