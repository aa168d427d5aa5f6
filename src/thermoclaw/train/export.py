"""The trained model in files that other programs read, each seen to give what the model gives."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thermoclaw.files import atomic_file
from thermoclaw.train.errors import RunError

FOLDER = "export"
NAMES = {"state": "model.pt", "program": "model.pt2", "onnx": "model.onnx"}
TOLERANCE = 1e-4  # of the largest score; kernels of another program add in another order


def export_model(
    model: nn.Module, example: Tensor, folder: Path, *, forms: Sequence[str], about: dict[str, Any]
) -> list[Path]:
    """Write the model in each form, and compare what each file gives with what the model gives.

    Args:
        model: it is put into evaluation mode.
        example: pixels from 0 to 1, [B, C, H, W] with B at least 2.
        folder: where to.
        forms: among "state" (weights and what is needed to build the model), "program" (torch.export) and "onnx".
        about: plain data that goes beside the weights.

    Raises:
        ImportError: an extra is missing.
        RunError: a file gives something else than the model.
        OSError: a file cannot be written.
    """
    model = model.eval()
    written = []
    with torch.no_grad():
        if "state" in forms:
            with atomic_file(folder / NAMES["state"], "wb") as handle:
                torch.save({"model": model.state_dict(), **about}, handle)
            written.append(folder / NAMES["state"])
        if "program" in forms or "onnx" in forms:
            program = torch.export.export(
                model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},)
            )
        if "program" in forms:
            written.append(_write_program(program, model, example, folder / NAMES["program"]))
        if "onnx" in forms:
            written.append(_write_onnx(program, model, example, folder / NAMES["onnx"]))
    return written


def _write_program(program: Any, model: nn.Module, example: Tensor, target: Path) -> Path:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    read = torch.export.load(buffer).module()
    for pixels in (example, example[:1]):
        _check(read(pixels), model(pixels), target)
    with atomic_file(target, "wb") as handle:
        handle.write(buffer.getvalue())
    return target


def _write_onnx(program: Any, model: nn.Module, example: Tensor, target: Path) -> Path:
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx and onnxscript: pip install 'thermoclaw[onnx]'") from error
    with _quiet():
        made = torch.onnx.export(program, (example,), dynamo=True, verbose=False)
    if made is None:
        raise RunError(f"{target}: torch made no ONNX program")
    content = made.model_proto.SerializeToString()
    reader = ReferenceEvaluator(made.model_proto)
    for pixels in (example[:2], example[:1]):
        (scores,) = reader.run(None, {reader.input_names[0]: pixels.numpy()})
        _check(torch.from_numpy(np.asarray(scores)), model(pixels), target)
    with atomic_file(target, "wb") as handle:
        handle.write(content)
    return target


def _check(got: Tensor, want: Tensor, target: Path) -> None:
    scale = max(float(want.abs().max()), 1.0)
    if got.shape != want.shape or not float((got - want).abs().max()) <= TOLERANCE * scale:
        raise RunError(f"{target.name} gives other scores than the model; it was not written")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not there and of its own inside."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
