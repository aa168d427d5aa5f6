"""The gain of attention logits, ‖W_Qᵀ W_K‖, against singular values, wherever queries and keys can be told by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.test_probe import follow
from thermoclaw import Record
from thermoclaw.measure.anatomy import QueryKey
from thermoclaw.measure.attention import AttentionGain

WIDTH = 12


class Conv1D(nn.Module):
    """As in transformers: inputs come first."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


def norm_of(query: Tensor, key: Tensor) -> float:
    """Both [outputs, inputs]."""
    product = query.detach().double().T.numpy() @ key.detach().double().numpy()
    return float(np.linalg.svd(product, compute_uv=False)[0])


def gains(model: nn.Module, num_steps: int = 700) -> dict[str, float]:
    """The last estimate of each layer that has one."""
    record: Record = follow(model, num_steps, lambda name, p, t: torch.zeros_like(p))
    row = record["attention_gain"][np.isfinite(record["row_likeness"]).any(axis=1)][-1]
    return {name: value for name, value in zip(record.layer_names, row, strict=True) if np.isfinite(value)}


def block(**parts: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"attn": nn.ModuleDict(parts), "mlp": nn.Linear(WIDTH, 3 * WIDTH)})


@pytest.mark.parametrize(
    ("query", "key"),
    [("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("wq", "wk"), ("q", "k"), ("q_lin", "k_lin")],
)
def test_two_maps(query: str, key: str) -> None:
    torch.manual_seed(0)
    q, k = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
    found = gains(block(**{query: q, key: k, "v_proj": nn.Linear(WIDTH, 8)}))
    assert found == {f"attn.{query}": pytest.approx(norm_of(q.weight, k.weight), rel=0.01)}


@pytest.mark.parametrize("name", ["qkv", "c_attn", "attn_qkv", "qkv_proj"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_one_map_of_queries_keys_and_values(name: str, is_transposed: bool) -> None:
    torch.manual_seed(0)
    fused = Conv1D(3 * WIDTH, WIDTH) if is_transposed else nn.Linear(WIDTH, 3 * WIDTH)
    weight = fused.weight.t() if is_transposed else fused.weight
    want = norm_of(weight[:WIDTH], weight[WIDTH : 2 * WIDTH])
    assert gains(block(**{name: fused})) == {f"attn.{name}": pytest.approx(want, rel=0.01)}


@pytest.mark.parametrize("settings", [{}, {"kdim": 7, "vdim": 5}], ids=str)
def test_the_multihead_attention_of_torch(settings: Mapping[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(WIDTH, 3, **settings))
    weights = (model[0].q_proj_weight, model[0].k_proj_weight) if settings else model[0].in_proj_weight.chunk(3)[:2]
    assert gains(model) == {"0": pytest.approx(norm_of(*weights), rel=0.01)}


def test_heads_that_share_keys() -> None:
    torch.manual_seed(0)
    attn = nn.ModuleDict({"q_proj": nn.Linear(WIDTH, 16), "k_proj": nn.Linear(WIDTH, 8)})
    model = nn.ModuleDict({"attn": attn})
    assert gains(model, 20) == {}, "the width of a head is not known"
    attn.head_dim = 4
    key = attn["k_proj"].weight.view(2, 4, WIDTH).repeat_interleave(2, dim=0).reshape(16, WIDTH)
    assert gains(model) == {"attn.q_proj": pytest.approx(norm_of(attn["q_proj"].weight, key), rel=0.01)}


def hugging_face(name: str) -> tuple[nn.Module, str, Callable[[nn.Module], float]]:
    transformers = pytest.importorskip("transformers")
    if name == "gpt2":
        model = transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=WIDTH, vocab_size=20))
        return model, "h.0.attn.c_attn", lambda m: norm_of(m.weight.t()[:WIDTH], m.weight.t()[WIDTH : 2 * WIDTH])
    if name == "bert":
        config = transformers.BertConfig(
            num_hidden_layers=1, num_attention_heads=2, hidden_size=WIDTH, intermediate_size=20, vocab_size=20
        )
        return transformers.BertModel(config), "encoder.layer.0.attention.self.query", lambda m: float("nan")
    config = transformers.LlamaConfig(
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=16,
        intermediate_size=20,
        vocab_size=20,
    )
    return transformers.LlamaModel(config), "layers.0.self_attn.q_proj", lambda m: float("nan")


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_models_of_transformers_are_recognized(name: str) -> None:
    model, layer, want = hugging_face(name)
    found = gains(model, 200)
    assert list(found) == [layer]
    assert found[layer] > 0
    exact = want(model.get_submodule(layer))
    assert np.isnan(exact) or found[layer] == pytest.approx(exact, rel=0.05)


def test_other_maps_are_not_taken_for_attention() -> None:
    model = nn.ModuleDict(
        {
            "root_like": nn.Linear(WIDTH, WIDTH),
            "c_attn": nn.Linear(WIDTH, 2 * WIDTH),
            "query": nn.Linear(WIDTH, WIDTH),
            "other": nn.ModuleDict({"key": nn.Linear(WIDTH, WIDTH)}),
        }
    )
    assert gains(model, 20) == {}
    assert gains(nn.Linear(WIDTH, 3 * WIDTH), 20) == {}
    assert gains(block(qkv=nn.Linear(WIDTH, 3 * WIDTH, dtype=torch.cfloat)), 20) == {}


def test_the_estimate_follows_the_weights_and_outlives_zeros() -> None:
    torch.manual_seed(0)
    q, k = nn.Parameter(torch.randn(8, WIDTH)), nn.Parameter(torch.randn(8, WIDTH))
    gain = AttentionGain(QueryKey(q, k, is_transposed=False, head=0))
    for _ in range(30):
        last = gain.step()
    with torch.no_grad():
        assert float(last) == pytest.approx(norm_of(q, k), rel=1e-3)
        q.mul_(3.0)
        assert float(gain.step()) == pytest.approx(norm_of(q, k), rel=1e-3)
        saved = q.clone()
        q.zero_()
        assert float(gain.step()) == 0.0
        q.copy_(saved)
        assert float(gain.step()) == pytest.approx(norm_of(q, k), rel=1e-3)
        k[0, 0] = float("nan")
        assert np.isnan(float(gain.step()))
        k[0, 0] = 0.0
        assert np.isfinite(float(gain.step()))


def test_the_estimate_is_never_too_large() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        q, k = nn.Parameter(torch.randn(8, WIDTH)), nn.Parameter(torch.randn(8, WIDTH))
        assert float(AttentionGain(QueryKey(q, k, is_transposed=False, head=0)).step()) <= norm_of(q, k) * (1 + 1e-5)
