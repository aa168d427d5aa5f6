"""Probes: zeros of gradients, rows that do not learn, rows that are alike, and how a layer began, by closed forms.

Legend: T steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import mlp
from thermoclaw import Observer, Record, diagnose
from thermoclaw.layers import lay_out
from thermoclaw.measure.anatomy import survey
from thermoclaw.measure.cadence import BUSY_FROM, BUSY_UNTIL, Cadence
from thermoclaw.measure.parts import main_matrices
from thermoclaw.measure.probe import Probe
from thermoclaw.measure.probed import PROBED, ProbedLayers
from thermoclaw.measure.timing import Clock
from thermoclaw.quantities import LAYER_COLUMNS
from thermoclaw.record import npz
from thermoclaw.record import record as record_module

CPU = torch.device("cpu")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def follow(
    model: nn.Module, num_steps: int, grad: Callable[[str, Tensor, int], Tensor | None], **settings: Any
) -> Record:
    """Steps on given gradients, by name of the parameter and step, without moving anything."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    observer = Observer(model, optimizer, strict=True, **settings)
    for t in range(1, num_steps + 1):
        for name, p in model.named_parameters():
            p.grad = grad(name, p, t)
        optimizer.step()
        observer.step()
    return observer.record()


def at(record: Record, name: str, layer: str, step: int) -> float:
    return float(record[name][record.steps.tolist().index(step), record.layer_names.index(layer)])


def probed_steps(record: Record, name: str = "grad_zeros") -> list[int]:
    return [int(step) for step, row in zip(record.steps, record[name], strict=True) if not np.isnan(row).all()]


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3, 8, 20])
def test_probes_lie_apart_on_rows_that_are_kept(every: int) -> None:
    cadence = Cadence(every=every)
    calls = [cadence.next() for _ in range(1200)]
    probed = [call.number for call in calls if call.probed]
    assert all(call.kept and call.measured for call in calls if call.probed)
    gaps = np.diff(probed)
    early = gaps[np.array(probed[1:]) <= 64]
    assert probed[0] == 1
    assert (early >= 4).all()
    assert (gaps[np.array(probed[:-1]) > 64] >= 8).all()
    assert gaps.max() <= max(2 * 8, every)
    deep = [call.number for call in calls if call.deep]
    assert deep == [n for i, n in enumerate(probed) if n in deep]
    assert len(probed) / 5 < len(deep) < len(probed) / 3


def test_the_default_steps() -> None:
    record = follow(nn.Linear(3, 2), 90, lambda name, p, t: torch.ones_like(p))
    assert probed_steps(record) == [*range(1, 65, 4), 65, 73, 81, 89]
    assert probed_steps(record, "row_likeness") == [1, 17, 33, 49, 65]


def test_a_long_history_keeps_probes() -> None:
    record = follow(nn.Linear(3, 2), 3000, lambda name, p, t: torch.ones_like(p), history_bytes=0)
    middle = (record.steps > 300) & (record.steps < 2500)
    assert middle.sum() < 100
    assert np.isfinite(record["grad_zeros"][middle]).all()


def test_only_measured_steps_are_probed() -> None:
    record = follow(nn.Linear(3, 2), 200, lambda name, p, t: torch.ones_like(p), every=20)
    assert probed_steps(record) == record.steps.tolist()


# -- zeros -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize("mode", ["sketch", "exact"])
def test_zeros_are_counted_over_all_parameters_of_a_layer(dtype: torch.dtype, mode: str, backend: str) -> None:
    """Of either sign; what is not a number is not zero, and what is tiny is not."""

    def grad(name: str, p: Tensor, t: int) -> Tensor:
        g = torch.full_like(p, 6e-8)
        if name == "0.weight":
            g[:, :100] = 0.0
            g[1, 50:70] = -0.0
            g[2, 7:10] = torch.tensor([float("nan"), float("inf"), -1.0])
        if name == "0.bias":
            g[:2] = 0.0
        return g

    model = nn.Sequential(nn.Linear(700, 5), nn.LayerNorm(5)).to(dtype)
    record = follow(model, 2, grad, mode=mode)
    assert at(record, "grad_zeros", "0", 1) == pytest.approx((5 * 100 - 3 + 2) / (5 * 700 + 5), rel=1e-6)
    assert at(record, "grad_zeros", "1", 1) == 0.0
    assert np.isnan(record["grad_zeros"][1]).all()


def test_every_layout_gives_the_same_counts(backend: str) -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2),
            nn.ConvTranspose2d(6, 4, 3),
            nn.Linear(5, 7),
            nn.Linear(3, 3, dtype=torch.cfloat),
        )

    def grad(name: str, p: Tensor, t: int, *, odd: bool) -> Tensor:
        g = torch.ones_like(p, memory_format=torch.contiguous_format)
        if name == "0.weight":
            g[4], g[1, 1] = 0.0, 0.0
            return g.contiguous(memory_format=torch.channels_last) if odd else g
        if name == "1.weight":
            g[:, 2] = 0.0
        if name == "2.weight":
            g[3:], g[0, 0] = 0.0, 0.0
            return g.t().contiguous().t() if odd else g
        if name == "3.weight":
            g[1], g[0, 0] = 0.0, 1j
        return g

    plain, odd = (follow(model(), 9, lambda *a, odd=odd: grad(*a, odd=odd)) for odd in (False, True))
    for record in (plain, odd):
        zeros = [at(record, "grad_zeros", str(i), 9) for i in range(4)]
        assert zeros == pytest.approx([27 / 114, 54 / 220, 21 / 42, 15 / 24], rel=1e-6)
        silent = [at(record, "silent_rows", str(i), 9) for i in range(4)]
        assert silent == pytest.approx([1 / 6, 1 / 4, 4 / 7, 1 / 3], rel=1e-6)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_are_silent_after_three_probes_and_dead_after_twelve(backend: str) -> None:
    """Rows 0–1 are always zero, row 2 until step 41, row 3 comes and goes."""

    def grad(name: str, p: Tensor, t: int) -> Tensor:
        g = torch.ones_like(p)
        g[:2] = 0.0
        if t < 41:
            g[2] = 0.0
        if t % 8 == 1:
            g[3] = 0.0
        return g

    record = follow(nn.Linear(6, 8), 64, grad)
    silent, dead = (
        {t: at(record, name, "(root)", t) for t in range(1, 62, 4)} for name in ("silent_rows", "dead_rows")
    )
    assert np.isnan([silent[1], silent[5]]).all()
    assert {t: silent[t] for t in (9, 37, 41, 61)} == {9: 3 / 8, 37: 3 / 8, 41: 2 / 8, 61: 2 / 8}
    assert np.isnan([dead[t] for t in range(1, 45, 4)]).all()
    assert [dead[t] for t in range(45, 62, 4)] == [2 / 8] * 5
    assert np.isnan(record["silent_rows"][1]).all()


def test_units_of_a_relu_that_are_off_are_dead(backend: str) -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(32, 6)), torch.randint(4, (32,))).backward()
        optimizer.step()
        observer.step()
    record = observer.record()
    assert at(record, "dead_rows", "0", 49) == pytest.approx(0.3)
    assert at(record, "grad_zeros", "0", 49) == pytest.approx(0.3)
    assert at(record, "dead_rows", "2", 49) == 0.0
    assert at(record, "grad_zeros", "2", 49) == pytest.approx(12 / 44)


def test_a_missing_gradient_is_no_probe(backend: str) -> None:
    """Rows keep their counts; a layer without gradient has no shares."""

    def grad(name: str, p: Tensor, t: int) -> Tensor | None:
        return None if name.startswith("0") and t in (5, 9) else torch.zeros_like(p)

    record = follow(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 17, grad)
    assert np.isnan(at(record, "grad_zeros", "0", 5))
    assert np.isnan([at(record, "silent_rows", "0", t) for t in (5, 9, 13)]).all()
    assert [at(record, "silent_rows", "0", 17), at(record, "silent_rows", "1", 9)] == [1.0, 1.0]
    assert at(record, "has_grad", "0", 5) == 0.0


def test_embeddings_vectors_and_sparse_gradients_have_no_rows(backend: str) -> None:
    model = nn.Sequential(nn.Embedding(20, 4), nn.LayerNorm(4))
    record = follow(model, 9, lambda name, p, t: torch.zeros_like(p))
    assert np.isnan(record["silent_rows"]).all()
    assert at(record, "grad_zeros", "0", 9) == at(record, "grad_zeros", "1", 9) == 1.0
    rows = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1, 4), (20, 4)).coalesce()
    record = follow(nn.Embedding(20, 4, sparse=True), 9, lambda name, p, t: rows)
    assert np.isnan(record["grad_zeros"]).all()
    assert np.isfinite(record["grad_sq"]).all()


def test_frozen_is_not_missing() -> None:
    model = mlp(4, 5, 3)
    model[0].requires_grad_(False)
    record = follow(model, 3, lambda name, p, t: None)
    assert np.isnan(record["has_grad"][:, 0]).all()
    assert (record["has_grad"][:, 1] == 0).all()
    model[0].bias.requires_grad_(True)
    assert (follow(model, 3, lambda name, p, t: None)["has_grad"] == 0).all()


# -- weights -----------------------------------------------------------------------------------------------------------


def alike(rows: np.ndarray) -> float:
    return float(len(rows) * (rows.mean(0) ** 2).sum() / (rows**2).sum())


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
def test_likeness_of_rows(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    same, random, table = nn.Linear(300, 7), nn.Linear(300, 50), nn.Embedding(60, 9)
    with torch.no_grad():
        same.weight.copy_(torch.randn(300).expand(7, 300))
        random.weight.add_(0.01)
    model = nn.Sequential(same, random, table, nn.LayerNorm(4)).to(dtype)
    record = follow(model, 1, lambda name, p, t: torch.ones_like(p))
    want = [alike(m.weight.detach().double().numpy()) for m in list(model)[:3]]
    assert want[0] == pytest.approx(1.0)
    assert want[1] < 0.2
    rounded = dtype in (BF16, F16) and backend == "torch"
    np.testing.assert_allclose(record["row_likeness"][0, :3], want, rtol=0.03 if rounded else 1e-5)
    assert np.isnan(record["row_likeness"][0, 3])


@pytest.mark.parametrize("closure", [False, True])
def test_weights_are_those_after_the_step(closure: bool) -> None:
    """Also where gradients can be read after it only."""
    model = nn.Linear(6, 5)
    before = alike(model.weight.detach().numpy().copy())
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    observer = Observer(model, optimizer, strict=True)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(torch.ones(1, 6)).square().sum()
        value.backward()
        return value

    optimizer.step(loss) if closure else (loss(), optimizer.step())
    observer.step()
    found = observer.record()["row_likeness"][0, 0]
    assert found == pytest.approx(alike(model.weight.detach().numpy()), rel=1e-5)
    assert found != pytest.approx(before, rel=0.01)


def test_rows_are_outputs_wherever_a_module_has_them(backend: str) -> None:
    class Conv1D(nn.Linear):
        """As in transformers: inputs come first."""

    torch.manual_seed(0)
    model = nn.Sequential(
        Conv1D(5, 30), nn.ConvTranspose1d(6, 4, 3), nn.Conv2d(3, 8, 2), nn.Linear(4, 4, dtype=torch.cfloat)
    )
    record = follow(model, 1, lambda name, p, t: torch.ones_like(p))
    weights = [m.weight.detach() for m in model]
    rows = [
        weights[0].t().numpy(),
        weights[1].transpose(0, 1).flatten(1).numpy(),
        weights[2].flatten(1).numpy(),
        torch.view_as_real(weights[3]).flatten(1).numpy(),
    ]
    np.testing.assert_allclose(record["row_likeness"][0], [alike(x) for x in rows], rtol=1e-5)


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_the_gain_a_layer_starts_with(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    modules = [
        nn.Linear(400, 90),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.Embedding(50, 9),
    ]
    model = nn.Sequential(*modules, nn.LayerNorm(5)).to(dtype)
    fan_in = [400, 4 * 9, 4 * 9, 1]
    want = [
        float(m.weight.detach().double().square().mean().sqrt()) * n**0.5 for m, n in zip(modules, fan_in, strict=True)
    ]
    record = follow(model, 6, lambda name, p, t: torch.ones_like(p))
    np.testing.assert_allclose(record["start_gain"][0, :4], want, rtol=0.01 if dtype == BF16 else 1e-5)
    assert np.isnan(record["start_gain"][0, 4])
    assert np.isnan(record["start_gain"][1:]).all(), "told once"


def test_a_layer_that_joins_tells_its_own_start_and_the_others_keep_their_counts() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.0)
    observer = Observer(model, optimizer, strict=True)
    for t in range(1, 18):
        if t == 10:
            optimizer.add_param_group({"params": list(model[1].parameters())})
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        observer.step()
    record = observer.record()
    assert np.flatnonzero(np.isfinite(record["start_gain"][:, 0])).tolist() == [0]
    assert np.flatnonzero(np.isfinite(record["start_gain"][:, 1])).tolist() == [12]
    assert at(record, "silent_rows", "0", 13) == 1.0, "the fourth probe of this layer"
    assert np.isnan(at(record, "silent_rows", "1", 17)), "the second"


def test_a_resumed_run_does_not_take_its_state_for_a_start() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    observer._attachment.resume(None, step=100, epoch=1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    observer.step()
    record = observer.record()
    assert np.isfinite(record["grad_zeros"][0]).all()
    assert np.isnan(record["start_gain"]).all()


# -- what cannot be probed ---------------------------------------------------------------------------------------------


def input_scales(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """What one step on x tells, by layer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    model(x).square().sum().backward()
    optimizer.step()
    observer.step()
    return dict(zip(observer.layer_names(), observer.record()["input_scale"][0].tolist(), strict=True))


def test_the_first_layer_tells_the_size_of_its_inputs(backend: str) -> None:
    """g_W = δxᵀ and g_b = δ for one example, so the ratio of their norms is ‖x‖ exactly."""
    x = 40.0 * torch.randn(1, 16)
    scale = input_scales(nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), x)
    assert scale["0"] == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
    assert np.isnan(scale["2"])


def test_positions_of_a_container_are_not_its_first_layer() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 8))
            self.patch, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.patch(x) + self.position)

    x = 40.0 * torch.randn(1, 16)
    scale = input_scales(Patches(), x)
    assert scale["patch"] == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
    assert np.isnan([scale["head"], scale["(root)"]]).all()


@pytest.mark.parametrize("behind", [nn.BatchNorm1d(8), nn.LayerNorm(8)], ids=str)
def test_a_norm_that_centers_leaves_nothing_to_tell(behind: nn.Module) -> None:
    """What a bias adds to all examples a batch norm takes away again: its gradient is rounding."""
    model = nn.Sequential(nn.Linear(16, 8), behind, nn.Linear(8, 3))
    told = [scale for scale in input_scales(model, 40.0 * torch.randn(32, 16)).values() if np.isfinite(scale)]
    assert len(told) == isinstance(behind, nn.LayerNorm)
    apart = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), behind, nn.Linear(8, 3))
    assert len([x for x in input_scales(apart, torch.randn(32, 16)).values() if np.isfinite(x)]) == 1


class Last(nn.Module):
    """A linear map of the last outputs of a recurrent layer, or of a cell's."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        return self.head(out[0] if isinstance(out, tuple) else out)


@pytest.mark.parametrize(
    "inner", [nn.LSTM(16, 8, 2), nn.GRU(16, 8), nn.RNN(16, 8), nn.GRUCell(16, 8), nn.LSTMCell(16, 8)], ids=str
)
def test_a_recurrent_layer_tells_the_size_of_its_inputs(inner: nn.Module, backend: str) -> None:
    x = 2.0 * torch.randn(1, 16)
    told = [scale for scale in input_scales(Last(inner, 8), x).values() if np.isfinite(scale)]
    assert told == [pytest.approx(float(x.square().mean().sqrt()), rel=1e-4)]


def test_a_recurrent_layer_without_bias_does_not() -> None:
    assert survey(Last(nn.GRU(16, 8, bias=False), 8)).entry is None


def test_a_cell_takes_more_than_one_product() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 3))
    assert survey(model).entry is None


@pytest.mark.parametrize("bias", [True, False])
def test_a_cross_entropy_does_not_push_all_outputs_together(bias: bool, backend: str) -> None:
    for push, want in ((0.0, 0.0), (1e4, 1.0)):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=bias))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer, strict=True)
        logits = model(torch.randn(7, 6))
        (nn.functional.cross_entropy(logits, torch.arange(7) % 5) + push * logits.mean()).backward()
        optimizer.step()
        observer.step()
        assert observer.record()["output_drift"][0, 1] == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_the_gradient_of_one_example_has_one_direction(outputs: int, dtype: torch.dtype, backend: str) -> None:
    """With fewer than three outputs errors are one number, and it is the first layer that is asked."""
    torch.manual_seed(0)

    def rank(examples: int) -> float:
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer, strict=True)
        (
            model(torch.randn(examples, 6, dtype=dtype)) - torch.randn(examples, outputs, dtype=dtype)
        ).square().sum().backward()
        optimizer.step()
        observer.step()
        ranks = observer.record()["stable_rank"][0]
        assert np.isnan(ranks[0 if outputs > 2 else 1])
        return float(ranks[1 if outputs > 2 else 0])

    assert rank(1) == pytest.approx(1.0, abs=1e-5)
    assert rank(2) > 1.0 + 1e-4
    assert rank(64) > 1.05


def test_the_rank_of_a_gradient_is_that_of_its_singular_values(backend: str) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4, bias=False)

    model = Given()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    model.map.weight.grad = torch.diag(torch.tensor([100.0, 1.0, 0.0, 0.0]))
    optimizer.step()
    observer.step()
    assert 1.0001 <= observer.record()["stable_rank"][0, 0] < 1.001  # ‖g‖²/σ₁² from above


@pytest.mark.parametrize("first", [nn.Embedding(9, 4), nn.Linear(4, 4, bias=False)])
def test_inputs_that_the_first_layer_cannot_tell(first: nn.Module) -> None:
    x = torch.tensor([1, 2]) if isinstance(first, nn.Embedding) else torch.randn(2, 4)
    assert np.isnan(list(input_scales(nn.Sequential(first, nn.Linear(4, 3)), x).values())).all()


def test_units_of_many_processes_are_not_probed() -> None:
    """Nor is a layer of which only a part could be."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layout = lay_out(model, torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1))
    units = [dataclasses.replace(unit, mesh=object() if u == 0 else None) for u, unit in enumerate(layout.units)]
    probe = Probe(units, survey(model), device=CPU, block=4, dtype=F64, main=main_matrices(units))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    layers = ProbedLayers()
    layers.bind([unit.layer for unit in units], 2)
    for _ in range(3):
        seen = probe.read_gradients(skipped=None)
        probe.read_weights()
    columns = layers.columns(probe.ring.next_row()[None].numpy(), [seen], np.array([False]))
    for name in ("grad_zeros", "silent_rows", "row_likeness", "start_gain"):
        assert np.isnan(columns[name][0, 0]), name
    assert columns["grad_zeros"][0, 1] == columns["silent_rows"][0, 1] == 1.0


@pytest.mark.parametrize("lag", [1, 8])
def test_a_refused_step_is_no_probe_and_loses_no_start(lag: int) -> None:
    """A fused optimizer is called, and refuses, when the loss scaler found an overflow."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    observer = Observer(model, optimizer, strict=True, lag=lag)
    for t in range(1, 22):
        optimizer.found_inf = torch.tensor(float(t in (1, 9)))
        for p in model.parameters():
            p.grad = torch.ones_like(p) if t == 9 else torch.zeros_like(p)
        optimizer.step()
        observer.step()
    record = observer.record()
    want = float(model.weight.detach().square().mean().sqrt()) * 3**0.5
    assert probed_steps(record) == [4, 11, 15, 19], "calls 5, 13, 17 and 21"
    assert at(record, "start_gain", "(root)", 4) == pytest.approx(want, rel=1e-6)
    assert np.isfinite(record["start_gain"]).sum() == 1
    assert at(record, "silent_rows", "(root)", 15) == 1.0, "the refused gradient broke no row"


def test_parameters_of_every_fate() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scalar, self.empty = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0, 3))
            self.wide = nn.Parameter(torch.ones(2, 1, 3, 1))
            self.lazy = nn.LazyLinear(3)

    model = Odd()
    params = [model.scalar, model.empty, model.wide]
    optimizer = torch.optim.SGD(params, lr=0.0)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(9):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        observer.step()
    record = observer.record()
    assert record["grad_zeros"][0, 0] == 1.0
    assert record["silent_rows"][8, 0] == 1.0
    assert record["row_likeness"][0, 0] == pytest.approx(1.0)
    assert record["start_gain"][0, 0] == pytest.approx(3**0.5)
    assert set(PROBED) <= set(record.to_pandas().columns)


# -- what goes with it -------------------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1), {}),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95), eps=1e-6), {"beta2": 0.95, "eps": 1e-6}),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.97), {"beta2": 0.97, "eps": 1e-8}),
    "asgd": (lambda p: torch.optim.ASGD(p, lr=0.1), {}),  # its alpha is something else
    "adadelta": (lambda p: torch.optim.Adadelta(p, rho=0.85), {"beta2": 0.85, "eps": 1e-6}),
    "adafactor": (lambda p: torch.optim.Adafactor(p, lr=0.1), {}),  # its eps are two
    "named": (lambda p: torch.optim.SGD([{"params": list(p), "name": "all"}], lr=0.1), {"name": "all"}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_record_tells_the_rest_of_the_hyper_parameters(name: str, tmp_path: Any) -> None:
    make, want = OPTIMIZERS[name]
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to(BF16)
    record = Observer(model, make(model.parameters())).record()
    for got in (record.meta, Record.load(record.save(tmp_path / "x.npz")).meta):
        group = got["param_groups"][0]
        assert {key: group[key] for key in ("beta2", "eps", "name") if key in group} == want
        assert got["layer_dtypes"] == {"0": "torch.bfloat16", "1": "torch.bfloat16"}
        assert got["layer_shapes"] == {"0": [4, 3], "1": [4]}


def test_a_layer_of_two_formats_names_both() -> None:
    model = nn.Linear(3, 4)
    model.bias = nn.Parameter(model.bias.detach().half())
    record = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1)).record()
    assert record.meta["layer_dtypes"] == {"(root)": "torch.float32, torch.float16"}


def test_files_from_before_there_were_probes_can_be_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = follow(nn.Linear(3, 2), 20, lambda name, p, t: torch.ones_like(p))
    before = tuple(name for name in LAYER_COLUMNS if name not in PROBED)
    places = [LAYER_COLUMNS.index(name) for name in before]
    with monkeypatch.context() as patch:
        for module in (npz, record_module):
            patch.setattr(module, "LAYER_COLUMNS", before)
        path = Record(record.steps, record.layers, record.layer_values[:, :, places], record.run_values).save(
            tmp_path / "x"
        )
    loaded = Record.load(path)
    for name in PROBED:
        assert np.isnan(loaded[name]).all()
    for name in before:
        np.testing.assert_array_equal(loaded[name], record[name], err_msg=name)
    diagnose(loaded)


def test_probes_count_towards_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made while the clock of own work runs, at the steps whose cost is sampled too."""
    timed: list[bool] = []
    inside: list[bool] = []
    own_work, read = Clock.own_work, Probe.read_gradients

    @contextmanager
    def watched(self: Clock, **given: Any) -> Iterator[None]:
        with own_work(self, **given):
            inside.append(True)
            yield
            inside.pop()

    def noted(self: Probe, **given: Any) -> Any:
        timed.append(bool(inside))
        return read(self, **given)

    monkeypatch.setattr(Clock, "own_work", watched)
    monkeypatch.setattr(Probe, "read_gradients", noted)
    follow(nn.Linear(3, 2), 60, lambda name, p, t: torch.ones_like(p), budget=0.5)
    assert sum(timed) == (BUSY_UNTIL - BUSY_FROM) // 4
