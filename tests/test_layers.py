"""Layers are the modules that own parameters, whatever the optimizer's groups are, and whatever happens to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.conftest import MODELS, TinyGPT, assert_same_record, mlp, seed_everything, train_step
from thermoclaw import Observer, Record, detect_layer_type, make_param_groups
from thermoclaw.layers import OUTSIDE, ROOT
from thermoclaw.quantities import TABLE

GPT = next(case for case in MODELS if case.name == "tied_gpt")
MLP = MODELS[0]

# -- the same layers from any groups ----------------------------------------------------------------------------------


def one_group(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), **settings}]


def decay_and_no_decay(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """HuggingFace's pair: norms and biases without decay."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1]
    return [
        {"params": decayed, **settings},
        {"params": [p for n, p in named if p.dim() <= 1], **settings, "weight_decay": 0.0},
    ]


def by_layer(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    return make_param_groups(model, **settings)


def one_by_one(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """A group a parameter, in reverse."""
    return [{"params": [p], **settings} for p in reversed(list(model.parameters()))]


def gpt_record(groups: Callable[..., Any], *, decay: float, mode: str = "sketch") -> Record:
    seed_everything(2)
    model = TinyGPT()
    optimizer = torch.optim.AdamW(groups(model, lr=0.01, weight_decay=decay))
    observer = Observer(model, optimizer, strict=True, mode=mode)
    for _ in range(12):
        observer.step(loss=train_step(model, optimizer, GPT))
    return observer.record()


GPT_LAYERS = [
    ("wte", "embedding", 1440),
    ("wpe", "embedding", 128),
    ("ln_1", "layernorm", 32),
    ("attn.c_attn", "attention", 816),
    ("attn.c_proj", "attention", 272),
    ("ln_2", "layernorm", 32),
    ("mlp.c_fc", "mlp", 1088),
    ("mlp.c_proj", "mlp", 1040),
    ("ln_f", "layernorm", 32),
]


@pytest.mark.parametrize("groups", [one_group, decay_and_no_decay, by_layer, one_by_one])
def test_any_groups_give_the_same_layers(groups: Callable[..., Any]) -> None:
    record = gpt_record(groups, decay=0.1)
    assert [(layer.name, layer.ltype, layer.num_params) for layer in record.layers] == GPT_LAYERS
    assert record.layers == gpt_record(one_group, decay=0.1).layers
    assert record.layers[3].param_names == ("attn.c_attn.weight", "attn.c_attn.bias")
    assert [layer.depth for layer in record.layers] == list(range(9))


@pytest.mark.parametrize("groups", [decay_and_no_decay, by_layer, one_by_one])
def test_any_groups_with_the_same_settings_give_the_same_numbers(groups: Callable[..., Any]) -> None:
    got, want = gpt_record(groups, decay=0.0, mode="exact"), gpt_record(one_group, decay=0.0, mode="exact")
    for name in TABLE:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-8, atol=1e-12, err_msg=name)
    assert gpt_record(groups, decay=0.0).steps.tolist() == want.steps.tolist()


def test_a_pair_of_groups_counts_each_parameter_with_its_own_decay() -> None:
    record = gpt_record(decay_and_no_decay, decay=0.5)
    decay = dict(zip(record.layer_names, record["weight_decay"][-1], strict=True))
    assert decay["wte"] == 0.5
    assert decay["ln_1"] == 0.0
    assert 0.4 < decay["mlp.c_fc"] < 0.5, "weights have it, the bias has not"
    assert (record["d_iS_wd"][:, 2] == 0).all()
    assert record.meta["layer_groups"]["mlp.c_fc"] == [0, 1]


def test_make_param_groups() -> None:
    model = TinyGPT()
    model.ln_1.weight.requires_grad_(False)
    groups = make_param_groups(model, lr=0.3, weight_decay=0.1)
    assert [group["name"] for group in groups] == [name for name, _, _ in GPT_LAYERS]
    assert all(group["lr"] == 0.3 and group["weight_decay"] == 0.1 for group in groups)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 1
    assert groups[2]["params"] == [model.ln_1.bias]
    torch.optim.AdamW(groups)
    with pytest.raises(ValueError, match="no trainable parameters: nothing to put into parameter groups"):
        make_param_groups(nn.ReLU(), lr=0.1)
    with pytest.raises(ValueError, match="no trainable parameters"):
        make_param_groups(nn.Linear(2, 2).requires_grad_(False))


# -- parameters of every fate -----------------------------------------------------------------------------------------


def run(model: nn.Module, optimizer: Optimizer, steps: int, loss: Callable[[], Tensor], observer: Observer) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        observer.step()


def class_loss(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: MLP.loss(model)


def test_tied_parameters_count_once_with_their_first_owner() -> None:
    model = TinyGPT()
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    record = observer.record()
    assert "lm_head" not in record.layer_names
    assert sum(layer.num_params for layer in record.layers) == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_are_layers_without_gradients_and_may_thaw() -> None:
    model = mlp(6, 8, 8, 4)
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 5, class_loss(model), observer)
    model[0].requires_grad_(True)
    run(model, optimizer, 5, class_loss(model), observer)
    model[0].requires_grad_(False)
    run(model, optimizer, 5, class_loss(model), observer)
    record = observer.record()
    np.testing.assert_array_equal(record["has_grad"][:, 0], [np.nan] * 5 + [1.0] * 5 + [np.nan] * 5)
    assert (record["has_grad"][:, 1:] == 1).all()
    assert (record["grad_sq"][:5, 0] == 0).all()
    assert (record["distance"][:5, 0] == 0).all(), "no gradient, no step: not even decay"
    assert (record["sigma"][:5, 0] == 0).all()
    assert (record["R_ie"][:5, 0] == 0).all()
    assert np.isnan(record["coherence"][5, 0]), "the first gradient has nothing to compare with"
    assert np.isfinite(record["coherence"][6:10, 0]).all()
    for name in ("D", "rho_mean", "R_median", "R_ie_total", "E_param_dist"):
        assert np.isfinite(record[name][1:]).all(), name


def test_parameters_that_are_never_used_are_there_and_silent() -> None:
    model = mlp(6, 8, 4)
    model.add_module("unused", nn.Linear(5, 5))
    used = nn.Sequential(*list(model.children())[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 6, class_loss(used), observer)
    record = observer.record()
    place = record.layer_names.index("unused")
    assert (record["has_grad"][:, place] == 0).all()
    assert (record["update_sq"][:, place] == 0).all()
    assert np.isfinite(record["R_ie_max"]).all()
    assert record.layers[place].num_params == 30


class OwnsParameters(nn.Module):
    """Parameters at the root, an empty one, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x) + self.nothing.sum()


def test_the_root_may_own_parameters_and_some_may_be_empty() -> None:
    model = OwnsParameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for mode in ("sketch", "exact"):
        observer = Observer(model, optimizer, strict=True, mode=mode)
        run(model, optimizer, 5, class_loss(model), observer)
        record = observer.record()
        assert [(layer.name, layer.num_params) for layer in record.layers] == [(ROOT, 1), ("linear", 28)]
        np.testing.assert_allclose(record["param_norm"][-1, 0], abs(model.scale.item()), rtol=1e-6)
        assert np.isfinite(record["alignment"]).all()


def test_a_layer_of_nothing_but_empty_parameters_is_none() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Module())
    model[1].weight = nn.Parameter(torch.zeros(0, 3))
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), strict=True)
    assert observer.record().layer_names == ["0"]


def test_a_list_of_models() -> None:
    models = [mlp(6, 8, 4), mlp(6, 8, 4)]
    params = [p for model in models for p in model.parameters()]
    optimizer = torch.optim.SGD(params, lr=0.1)
    observer = Observer(models, optimizer, strict=True)
    run(models[0], optimizer, 3, lambda: MLP.loss(models[0]) + MLP.loss(models[1]), observer)
    record = observer.record()
    assert record.layer_names == ["0", "2", "0 (model 2)", "2 (model 2)"]
    assert (record["grad_sq"] > 0).all()
    assert Observer(tuple(models), optimizer)._attachment is observer._attachment
    assert Observer.of(tuple(models), optimizer)._attachment is observer._attachment


def test_parameters_of_nobody_are_kept_apart() -> None:
    """The optimizer also trains a tensor that belongs to no module of the model."""
    model = mlp(6, 4)
    temperature = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 2, lambda: MLP.loss(model) * temperature.sum(), observer)
    record = observer.record()
    assert record.layer_names == ["0", OUTSIDE]
    assert (record["grad_sq"][:, 1] > 0).all()


def test_an_optimizer_of_a_part_measures_that_part() -> None:
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 4, class_loss(model), observer)
    record = observer.record()
    assert record.layer_names == ["2"]
    assert record.meta["outside_optimizer"] == ["0.bias", "0.weight"]


def test_two_optimizers_of_one_model_have_an_observer_each() -> None:
    model = mlp(6, 8, 4)
    first, second = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.AdamW(model[2].parameters(), lr=0.01)
    one, two = Observer(model, first, strict=True), Observer(model, second, strict=True)
    for _ in range(4):
        loss = MLP.loss(model)
        loss.backward()
        first.step()
        second.step()
        one.step(loss=loss)
        two.step(loss=loss)
        model.zero_grad()
    assert (one.record().layer_names, two.record().layer_names) == (["0"], ["2"])
    assert (one.record().optimizer, two.record().optimizer) == ("SGD", "AdamW")
    assert len(one.record()) == len(two.record()) == 4


# -- changes on the way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sketch", "exact"])
def test_a_group_added_on_the_way_gives_new_layers_and_disturbs_no_old_one(mode: str) -> None:
    def go(add: bool) -> Record:
        seed_everything(4)
        model = mlp(6, 8, 4).double()
        extra = nn.Linear(4, 4).double()
        whole = nn.ModuleDict({"body": model, "extra": extra})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        observer = Observer(whole, optimizer, strict=True, mode=mode, lag=8)
        for t in range(30):
            if add and t == 11:
                optimizer.add_param_group({"params": list(extra.parameters()), "lr": 0.01})
            optimizer.zero_grad()
            x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))
            out = model(x)
            (functional.cross_entropy(out, y) + extra(out.detach()).square().mean()).backward()
            optimizer.step()
            observer.step()
        return observer.record()

    got, want = go(True), go(False)
    assert got.layer_names == ["body.0", "body.2", "extra"]
    assert got.steps.tolist() == list(range(1, 31))
    assert np.isnan(got["param_sq"][:11, 2]).all()
    assert np.isfinite(got["param_sq"][11:, 2]).all()
    assert (got["distance"][11:, 2] > 0).all()
    assert np.isfinite(got["coherence"][12:, 2]).all()
    assert np.isfinite(got["norm_budget"][11:, 2]).all()
    assert got["lr"][-1].tolist() == [0.05, 0.05, 0.01]
    for name, quantity in TABLE.items():
        if quantity.scope == "layer":
            np.testing.assert_allclose(got[name][:, :2], want[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_parameter_that_joins_a_known_layer_does_not_look_like_growth() -> None:
    """A bias of norm 100 joins: the layer's norm jumps, but no step made it grow."""
    layer = nn.Linear(6, 4).double()
    with torch.no_grad():
        layer.bias.fill_(50.0)
    optimizer = torch.optim.SGD([layer.weight], lr=1e-3)
    observer = Observer(layer, optimizer, strict=True)
    budgets = []
    for t in range(20):
        if t == 10:
            optimizer.add_param_group({"params": [layer.bias], "lr": 1e-3})
        layer.weight.grad = layer.weight.detach().clone()  # shrinks the weights a little
        layer.bias.grad = layer.bias.detach().clone()
        optimizer.step()
        observer.step()
    budgets = observer.record()["norm_budget"][:, 0]
    assert observer.record().layers[0].num_params == 28
    assert (budgets > 0).all()
    assert (budgets < 0.01).all()


def test_parameters_replaced_on_the_way_are_followed() -> None:
    """Accelerate's FSDP replaces the parameters in the groups: bind again at the next step."""
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 5, class_loss(model), observer)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    run(model, optimizer, 5, class_loss(model), observer)
    record = observer.record()
    assert record.layer_names == ["0", "2"]
    assert len(record) == 10
    assert (record["grad_sq"] > 0).all()
    np.testing.assert_allclose(record["alignment"][[4, 9]], 1.0, rtol=1e-5)


def test_a_layer_that_leaves_keeps_its_column() -> None:
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    run(model, optimizer, 4, class_loss(model), observer)
    del optimizer.param_groups[0]
    run(model, optimizer, 4, class_loss(model), observer)
    record = observer.record()
    assert record.layer_names == ["0", "2"]
    assert (record["grad_sq"][:4, 0] > 0).all()
    assert (record["grad_sq"][4:, 0] == 0).all()
    assert (record["grad_sq"][:, 1] > 0).all()


def test_a_change_at_any_row_of_a_block_loses_none() -> None:
    for at in range(1, 19):
        model = mlp(6, 8, 4)
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        observer = Observer(model, optimizer, strict=True, lag=8)
        run(model, optimizer, at, class_loss(model), observer)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        run(model, optimizer, 20 - at, class_loss(model), observer)
        assert observer.rows_on_host() <= 20
        assert observer.record().steps.tolist() == list(range(1, 21))


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = {
    "embedding": """
        transformer.wte transformer.wpe wte.weight model.embed_tokens bert.embeddings.word_embeddings
        bert.embeddings.position_embeddings embeddings.patch_embeddings.projection patch_embed.proj vit.embeddings
        gpt_neox.embed_in tok_emb pos_emb encoder.embed_positions relative_attention_bias_embedding""",
    "layernorm": """
        transformer.h.0.ln_1 transformer.h.11.ln_2.bias transformer.ln_f model.layers.0.input_layernorm
        model.layers.0.post_attention_layernorm model.norm bert.embeddings.LayerNorm
        bert.encoder.layer.0.attention.output.LayerNorm bert.encoder.layer.0.output.LayerNorm.weight
        vit.encoder.layer.3.layernorm_before vit.encoder.layer.3.layernorm_after blocks.0.norm1 blocks.0.norm2
        layers.0.self_attn.q_norm bn1 layer1.0.bn2 attn_norm ffn_norm encoder.block.0.layer.0.layer_norm
        model.layers.3.mlp.norm""",
    "attention": """
        transformer.h.0.attn.c_attn transformer.h.0.attn.c_proj.weight model.layers.0.self_attn.q_proj
        model.layers.0.self_attn.o_proj bert.encoder.layer.0.attention.self.query
        bert.encoder.layer.0.attention.output.dense vit.encoder.layer.0.attention.attention.key blocks.0.attn.qkv
        blocks.0.attn.proj gpt_neox.layers.0.attention.query_key_value encoder.block.0.layer.0.SelfAttention.q
        attn1.to_out.0 transformer.resblocks.0.attn.out_proj cross_attention.k_proj self_attn.fc""",
    "mlp": """
        transformer.h.0.mlp.c_fc transformer.h.0.mlp.c_proj model.layers.0.mlp.gate_proj
        model.layers.0.mlp.down_proj.weight
        bert.encoder.layer.0.intermediate.dense bert.encoder.layer.0.output.dense blocks.0.mlp.fc1 blocks.0.mlp.fc2
        gpt_neox.layers.0.mlp.dense_h_to_4h layers.0.feed_forward.w1 layers.0.ffn.lin1 fc dense
        encoder.block.0.layer.1.DenseReluDense.wi attention_block.3.mlp.up_proj""",
    "lm_head": "lm_head lm_head.weight head classifier embed_out score module.lm_head cls_head.head",
    "generic": "0 layer.weight conv1 downsample.0 rnn.weight_ih_l0 body attend overhead normalizer_free_conv",
}


@pytest.mark.parametrize(("name", "kind"), [(n, kind) for kind, names in NAMES.items() for n in names.split()])
def test_layer_types_of_known_architectures(name: str, kind: str) -> None:
    """GPT-2, Llama, BERT, ViT (transformers and timm), GPT-NeoX, T5, DistilBERT, CLIP, ResNet."""
    assert detect_layer_type(name) == kind


def test_the_class_of_a_module_tells_more_than_its_name() -> None:
    model = nn.Sequential(
        nn.Embedding(4, 6),
        nn.LayerNorm(6),
        nn.MultiheadAttention(6, 2),
        nn.BatchNorm1d(6),
        nn.Linear(6, 2),
        nn.RMSNorm(2),
    )
    record = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1)).record()
    kinds = {layer.name: layer.ltype for layer in record.layers}
    assert kinds["0"] == "embedding"
    assert kinds["1"] == kinds["3"] == kinds["5"] == "layernorm"
    assert kinds["2"] == "attention"
    assert kinds["4"] == "generic"


def test_the_same_groups_twice_are_the_same_record() -> None:
    assert_same_record(gpt_record(by_layer, decay=0.1), gpt_record(by_layer, decay=0.1))
