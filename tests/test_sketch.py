"""The sketch: unbiased, within its error bounds on every kind of tensor, linear, exact where it fits; exact norms.

Bounds: a cosine read from sketches of k numbers has standard deviation (1 − c²)/√k, a norm √(2/k)/2 and a squared norm
√(2/k), relative.

Legend: N elements, p sketch size, k = p.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_bitwise, mlp, seed_everything
from thermoclaw import Observer
from thermoclaw.measure.sketch import SIZES, Sketcher, chunk_sign, sign_table
from thermoclaw.measure.sums import flat, flat_index, squared_norms
from thermoclaw.record import Record

P = 1021
CPU = torch.device("cpu")


@lru_cache(maxsize=4)
def sketcher(lengths: tuple[int, ...], size: int) -> Sketcher:
    return Sketcher([list(lengths)], size=size, device=CPU, dtype=torch.float64)


def sketch(x: Tensor, *, size: int = P, cuts: tuple[int, ...] = ()) -> Tensor:
    """S(x) in double precision, of one parameter or of several that follow one another."""
    bounds = [0, *cuts, x.numel()]
    out = torch.empty(size, dtype=torch.float64)
    maker = sketcher(tuple(b - a for a, b in itertools.pairwise(bounds)), size)
    maker.sketch(0, [x[a:b] for a, b in itertools.pairwise(bounds)], out)
    return out


def cos(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x, y) / (x.norm() * y.norm()))


# -- error bounds on the kinds of tensors that gradients are ----------------------------------------------------------

ROWS, COLUMNS = 240, 200


def gaussian() -> Tensor:
    return torch.randn(ROWS, COLUMNS, dtype=torch.float64)


def heavy_tailed() -> Tensor:
    """Student's t with two degrees of freedom: infinite variance."""
    return torch.distributions.StudentT(2.0).sample((ROWS, COLUMNS)).double()


def row_sparse() -> Tensor:
    """An embedding's gradient: one row in twenty."""
    x = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    x[ROW_CHOICE] = torch.randn(len(ROW_CHOICE), COLUMNS, dtype=torch.float64)
    return x


def low_rank() -> Tensor:
    return torch.randn(ROWS, 4, dtype=torch.float64) @ torch.randn(4, COLUMNS, dtype=torch.float64)


def outlier_columns() -> Tensor:
    """Three columns a hundred times larger, as in trained transformers."""
    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    x[:, COLUMN_CHOICE] *= 100.0
    return x


ROW_CHOICE, COLUMN_CHOICE = torch.arange(3, ROWS, 20), torch.tensor([17, 64, 150])
KINDS = [gaussian, heavy_tailed, row_sparse, low_rank, outlier_columns]
TRIALS = 100


def pair(make: Callable[[], Tensor], c: float) -> tuple[Tensor, Tensor]:
    """Two vectors of this kind whose cosine is c."""
    x, z = make().flatten(), make().flatten()
    x = x / x.norm()
    z = z - torch.dot(x, z) * x
    return x, c * x + np.sqrt(1 - c**2) * z / z.norm()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("c", [0.0, 0.1, 0.5, 0.9])
def test_cosines_are_unbiased_and_within_their_bound(make: Callable[[], Tensor], c: float) -> None:
    """100 trials estimate an sd to 7 %: the bound is theory plus four of those; a bias shows at 4 sd/√100."""
    pairs = [pair(make, c) for _ in range(TRIALS)]
    error = np.array([cos(sketch(x), sketch(y)) - c for x, y in pairs])
    sd = (1 - c**2) / np.sqrt(P)
    assert np.sqrt((error**2).mean()) < 1.28 * sd
    assert abs(error.mean()) < 4.0 * sd / np.sqrt(TRIALS)


def test_the_bound_is_sharp() -> None:
    """Gaussian vectors reach the theory's deviation: a bound that nothing comes near would prove nothing."""
    error = np.array([cos(sketch(x), sketch(y)) for x, y in (pair(gaussian, 0.0) for _ in range(TRIALS))])
    assert np.sqrt((error**2).mean()) > 0.75 / np.sqrt(P)


@pytest.mark.parametrize("make", KINDS)
def test_norms_are_unbiased_and_within_their_bound(make: Callable[[], Tensor]) -> None:
    xs = [make().flatten() for _ in range(TRIALS)]
    error = np.array([float(sketch(x).square().sum() / x.square().sum()) - 1.0 for x in xs])
    sd = np.sqrt(2.0 / P)
    assert np.sqrt((error**2).mean()) < 1.28 * sd
    assert abs(error.mean()) < 4.0 * sd / np.sqrt(TRIALS)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_keeps_its_bound(size: int) -> None:
    error = np.array(
        [cos(sketch(x, size=size), sketch(y, size=size)) for x, y in (pair(gaussian, 0.0) for _ in range(60))]
    )
    assert 0.65 / np.sqrt(size) < np.sqrt((error**2).mean()) < 1.4 / np.sqrt(size)


@pytest.mark.parametrize("num_elements", [50_000, 1_000_000, 3_000_000])
def test_a_constant_vector_keeps_its_norm(num_elements: int) -> None:
    """The hardest vector for shared signs: nothing in it is random, so the signs alone must be."""
    got = float(sketch(torch.ones(num_elements)).square().sum()) / num_elements
    assert abs(got - 1.0) < 4.0 * np.sqrt(2.0 / P)


def test_many_chunks_do_not_conspire() -> None:
    """300 chunks that share one table of signs: where shifts agree modulo p, the chunk's own sign keeps pairs apart.

    Without it the expected squared norm here is 1.8 times too large.
    """
    size, num_elements = 251, 300 * 251 * 128
    got = float(sketch(torch.ones(num_elements), size=size).square().sum()) / num_elements
    assert abs(got - 1.0) < 4.0 * np.sqrt(2.0 / size)
    signs = np.array([chunk_sign(k) for k in range(2000)])
    assert signs[0] == 1
    assert abs(signs.mean()) < 4.0 / np.sqrt(2000)


def test_an_offset_does_not_hide_the_rest() -> None:
    """cos of two independent Gaussian vectors on a common offset of one standard deviation is one half."""
    n = 200_000
    for _ in range(5):
        x, y = torch.randn(n, dtype=torch.float64) + 1.0, torch.randn(n, dtype=torch.float64) + 1.0
        assert cos(sketch(x), sketch(y)) == pytest.approx(cos(x, y), abs=4.0 * 0.75 / np.sqrt(P))


def test_signs_are_balanced_and_uncorrelated_at_the_lags_that_meet() -> None:
    signs = sign_table(2 * P * 128, device=CPU, dtype=torch.float64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    n = len(signs)
    assert abs(float(signs.mean())) < 4.0 / np.sqrt(n)
    for lag in (1, 2, P, 2 * P, 7 * P, P + 1):
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 4.0 / np.sqrt(n - lag), lag


def test_signs_are_the_same_on_every_machine() -> None:
    """Shards of one layer are sketched in many places, by several backends: the signs are part of the interface."""
    assert sign_table(24, device=CPU, dtype=torch.int8).tolist() == SIGNS
    x = torch.arange(1, 300_001, dtype=torch.float64)
    assert sketch(x)[:4].tolist() == SKETCH


SIGNS = [1, 1, 1, 1, -1, 1, -1, -1, -1, 1, -1, 1, 1, -1, -1, 1, 1, -1, -1, -1, 1, -1, -1, -1]
SKETCH = [2116535.0, 2465751.0, 1354855.0, -2827221.0]


# -- linear, exact, and the same however the tensor is laid out -------------------------------------------------------


@pytest.mark.parametrize("n", [5, P, P + 1, 70_000, 1_200_000])
def test_it_is_linear(n: int) -> None:
    x, y = torch.randn(2, n, dtype=torch.float64)
    torch.testing.assert_close(sketch(2 * x - 3 * y), 2 * sketch(x) - 3 * sketch(y), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, P - 1, P])
def test_it_is_exact_while_every_element_has_a_bucket(n: int) -> None:
    x, y = torch.randn(2, n, dtype=torch.float64)
    assert float(torch.dot(sketch(x), sketch(y))) == pytest.approx(float(torch.dot(x, y)), rel=1e-12, abs=1e-12)
    assert float(sketch(x).square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-12)


def test_it_is_not_exact_beyond() -> None:
    x = torch.randn(4 * P, dtype=torch.float64)
    assert abs(float(sketch(x).square().sum() / x.square().sum()) - 1.0) > 1e-6


@pytest.mark.parametrize("n", [600, 5_000, 200_000, 1_300_000])
@pytest.mark.parametrize("shares", [(0.1, 0.35), (0.5, 0.5), (0.0, 0.999)])
def test_sketches_of_shards_add_up(n: int, shares: tuple[float, float]) -> None:
    """Signs follow the place in the whole layer, so parts sketched at their offsets sum to the sketch of the whole."""
    x = torch.randn(n, dtype=torch.float64)
    cuts = sorted(int(n * s) for s in shares)
    bounds = [0, *cuts, n]
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    maker = Sketcher([lengths], size=P, device=CPU, dtype=torch.float64)
    total = torch.zeros(P, dtype=torch.float64)
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        out = torch.empty(P, dtype=torch.float64)
        maker.sketch(0, [x[a:b] if j == i else None for j in range(len(lengths))], out)
        total += out
    torch.testing.assert_close(total, sketch(x), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(sketch(x, cuts=tuple(cuts)), sketch(x), rtol=1e-12, atol=1e-9)


def test_a_missing_parameter_counts_as_zeros() -> None:
    for n in (300, 5_000, 200_000):
        x = torch.randn(n, dtype=torch.float64)
        zeros = torch.zeros_like(x)
        maker = Sketcher([[n, n]], size=P, device=CPU, dtype=torch.float64)
        for missing, present in (([None, x], [zeros, x]), ([x, None], [x, zeros]), ([None, None], [zeros, zeros])):
            a, b = torch.full((2, P), float("nan"), dtype=torch.float64)
            maker.sketch(0, missing, a)
            maker.sketch(0, present, b)
            assert_bitwise(a, b)


def test_one_sketcher_serves_units_of_every_size_in_any_order() -> None:
    """The accumulator is shared: what one unit left in it must not reach the next."""
    xs = [torch.randn(n, dtype=torch.float64) for n in (1_500_000, 70_000, 3_000, 400, 130_000)]
    maker = Sketcher([[x.numel()] for x in xs], size=P, device=CPU, dtype=torch.float64)
    for order in ([0, 1, 2, 3, 4], [2, 0, 4, 3, 1]):
        for u in order:
            out = torch.empty(P, dtype=torch.float64)
            maker.sketch(u, [xs[u]], out)
            assert_bitwise(out, sketch(xs[u]))


@pytest.mark.parametrize(("num_rows", "width"), [(50, 12), (400, 12), (20_000, 60)])
def test_a_sparse_gradient_is_sketched_as_its_dense_form(num_rows: int, width: int) -> None:
    index = torch.randint(num_rows, (1, 64))
    sparse = torch.sparse_coo_tensor(index, torch.randn(64, width, dtype=torch.float64), (num_rows, width)).coalesce()
    before = 37  # another parameter of the layer comes first
    maker = Sketcher([[before, num_rows * width]], size=P, device=CPU, dtype=torch.float64)
    want, got = torch.zeros(2, P, dtype=torch.float64)
    maker.sketch(0, [None, sparse.to_dense().flatten()], want)
    maker.sketch(0, [None, None], got)
    maker.add_sparse(0, 1, *flat_index(sparse), got)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-9)


def test_sparse_and_dense_embeddings_give_the_same_record() -> None:
    def run(sparse: bool) -> Observer:
        seed_everything(1)
        model = nn.Embedding(300, 12, sparse=sparse, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        observer = Observer(model, optimizer, strict=True)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randint(300, (20,))).square().sum().backward()
            assert model.weight.grad.is_sparse is sparse
            optimizer.step()
            observer.step()
        return observer

    for name in ("grad_sq", "coherence", "alignment", "update_sq", "distance", "noise", "d_iS_momentum"):
        got, want = (run(sparse).record()[name] for sparse in (True, False))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (16, 8, 3, 3), (4, 6)])
def test_the_memory_layout_of_a_gradient_does_not_matter(shape: tuple[int, ...]) -> None:
    """A gradient is read in the order of its parameter's memory, whatever its own strides are."""
    x = torch.randn(shape)
    parameters = [x, x.transpose(0, 1).contiguous().transpose(0, 1)]
    if x.dim() == 4:
        parameters.append(x.to(memory_format=torch.channels_last))
    for p in parameters:
        grad = torch.randn_like(p)
        other = grad.contiguous().transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)
        assert_bitwise(flat(grad, p), flat(other, p))
        assert_bitwise(flat(grad, p), flat(grad.contiguous(), p))
        assert float(torch.dot(flat(grad, p), flat(p, p))) == pytest.approx(float((grad * p).sum()), rel=1e-5, abs=1e-5)
        assert flat(p, p).untyped_storage().data_ptr() == p.untyped_storage().data_ptr(), "a view, not a copy"


def test_a_non_contiguous_model_gives_the_numbers_of_a_contiguous_one() -> None:
    def run(memory_format: torch.memory_format) -> Observer:
        seed_everything(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).double().to(memory_format=memory_format)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer, strict=True)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            observer.step()
        return observer

    for name in ("grad_sq", "coherence", "alignment", "update_sq", "distance", "noise", "d_iS_wd", "overshoot"):
        got, want = (run(f).record()[name] for f in (torch.channels_last, torch.contiguous_format))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)


# -- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 1000, 16_383, 16_384, 16_385, 100_000, 3_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_squared_norms_are_exact_to_one_in_a_million(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(n).to(dtype)
    want = float(x.double().square().sum())
    (got,) = squared_norms([x], dtype=torch.float64).tolist()
    assert got == pytest.approx(want, rel=1e-6 if dtype != torch.float64 else 1e-13)


def test_the_norm_of_torch_would_not_do() -> None:
    x = torch.randn(3_000_000)
    want = float(x.double().square().sum())
    assert abs(float(torch._foreach_norm([x])[0]) ** 2 / want - 1.0) > 1e-6


def test_squared_norms_of_many_tensors_keep_their_places() -> None:
    xs = [torch.full((n,), 2.0, dtype=d) for n, d in ((3, torch.float32), (20_000, torch.float32), (0, torch.float64))]
    xs += [
        torch.full((n,), 2.0, dtype=d) for n, d in ((40_000, torch.bfloat16), (7, torch.float64), (1, torch.float16))
    ]
    assert squared_norms(xs, dtype=torch.float64).tolist() == pytest.approx([4.0 * x.numel() for x in xs])
    unaligned = [x[1:] for x in xs if x.numel()]
    assert squared_norms(unaligned, dtype=torch.float64).tolist() == pytest.approx([4.0 * x.numel() for x in unaligned])


def test_small_changes_of_large_norms_are_seen() -> None:
    """A norm budget needs ‖θ‖² − ‖θ⁻‖², some 1e-5 of ‖θ‖²: the norms must be good to far more than that."""
    for n in (2_000, 16_000, 300_000):
        x = torch.randn(n)
        y = x * (1 + 1e-6 * torch.randn(n).sign())
        y[: n // 10] = x[: n // 10] * (1 + 1e-4)
        before, after = squared_norms([x, y], dtype=torch.float64).tolist()
        want = float(y.double().square().sum() - x.double().square().sum())
        assert after - before == pytest.approx(want, rel=0.01)


# -- through the observer ---------------------------------------------------------------------------------------------


def test_held_memory_is_kilobytes_a_layer() -> None:
    """36 kB a layer and 2 MB of signs, whatever the size of the layers."""
    model = mlp(500, 1000, 1000, 10)
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    (part,) = observer._attachment.meter._parts
    assert part.backend.num_bytes() < 3 * 40_000 + 2_500_000
    assert Sketcher([[P]], size=P, device=CPU, dtype=torch.float32).num_bytes == 0


# -- what sketches cannot resolve -------------------------------------------------------------------------------------


def tiny_steps(ratio: float, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Record:
    """SGD on a large layer and on a small one whose steps are this small beside the parameters."""
    seed_everything(0)
    model = nn.ModuleList([nn.Linear(400, 300, bias=False), nn.Linear(20, 20, bias=False)]).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    observer = Observer(model, optimizer, strict=True, **settings)
    for _ in range(6):
        for p in model.parameters():
            p.grad = torch.randn_like(p) * ratio * p.detach().norm() / p.numel() ** 0.5
        optimizer.step()
        observer.step()
    return observer.record()


def test_a_step_that_sketches_cannot_resolve_is_undefined_not_wrong() -> None:
    record = tiny_steps(3e-7)
    for name in ("alignment", "overshoot"):
        assert np.isnan(record[name][2:, 0]).all(), "a difference of sketches in single precision is noise here"
        assert np.isfinite(record[name][2:, 1]).all(), "a layer that fits is exact"
    assert np.isfinite(record["coherence"][2:]).all()
    assert np.isfinite(record["update_sq"][1:]).all()


@pytest.mark.parametrize("settings", [{"mode": "exact"}, {"dtype": torch.float64}])
def test_what_is_exact_resolves_any_step(settings: dict[str, Any]) -> None:
    record = tiny_steps(3e-7, **settings)
    np.testing.assert_allclose(record["alignment"][1:], 1.0, atol=0.05)


def test_steps_above_the_resolution_are_resolved() -> None:
    record = tiny_steps(3e-6)
    np.testing.assert_allclose(record["alignment"][1:], 1.0, atol=0.02)
    assert np.isfinite(record["overshoot"][2:]).all()


def test_no_step_at_all_is_resolved() -> None:
    record = tiny_steps(0.0)
    assert (record["update_sq"] == 0).all()
