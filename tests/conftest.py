"""What the tests of the measuring core share: small models, the table of optimizers, and ways to compare two runs."""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for this process and those that tests start: workers share the cores

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

if not torch.cuda.is_available():  # then Triton's kernels are tested in its interpreter, which must be asked for early
    os.environ.setdefault("TRITON_INTERPRET", "1")

Batch = Callable[[], tuple[Tensor, ...]]

needs_shards = pytest.mark.skipif(
    not torch.distributed.is_available()
    or not torch.distributed.is_gloo_available()
    or not hasattr(torch.cpu.Stream, "record_event"),  # from 2.7 on
    reason="this torch does not shard models on CPUs",
)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    """Every test starts from the same random state, with the log as it is by default, and leaves torch as it was."""
    logging.getLogger("thermoclaw").setLevel(logging.NOTSET)  # the zoo's workers silence it in their process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns until somebody decides
    seed_everything(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["kernel", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled pass over memory and with torch operations alone."""
    from thermoclaw.measure import native  # not before Triton was asked for its interpreter

    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler on this machine")
    return str(request.param)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the legacy state is one that a library could disturb)
    random.seed(seed)


# -- models -----------------------------------------------------------------------------------------------------------


class TinyGPT(nn.Module):
    """A transformer block with the names of GPT-2, its head tied to its embedding."""

    def __init__(self, vocabulary: int = 90, width: int = 16, length: int = 8) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        q, k, v = self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.attn["c_proj"](functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return self.lm_head(self.ln_f(x))


class ComplexLinear(nn.Module):
    """A complex parameter, as in a learned Fourier filter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


def mlp(*widths: int, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with tanh between them, and dropout where asked for."""
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        if i:
            parts += [nn.Tanh(), nn.Dropout(dropout)] if dropout else [nn.Tanh()]
        parts.append(nn.Linear(before, after))
    return nn.Sequential(*parts).to(dtype)


def conv_net() -> nn.Sequential:
    """Convolutions with batch norm in channels_last memory; one layer is larger than a sketch."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    return net.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ModelCase:
    """A model and the loss of a fresh random batch; `traits` say what an optimizer must cope with."""

    name: str
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    traits: frozenset[str] = frozenset()


def _classify(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        return functional.cross_entropy(model(torch.randn(shape).to(dtype)), torch.randint(4, (shape[0],)))

    return loss


def _images(model: nn.Module) -> Tensor:
    x = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    return functional.cross_entropy(model(x), torch.randint(4, (4,)))


def _tokens(model: nn.Module) -> Tensor:
    tokens = torch.randint(90, (4, 9))
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def _embedded(model: nn.Module) -> Tensor:
    return functional.cross_entropy(model(torch.randint(100, (8,))), torch.randint(12, (8,)))


MODELS = (
    ModelCase("mlp", lambda: mlp(6, 40, 30, 4, dropout=0.1), _classify((8, 6))),
    ModelCase("conv_bn_channels_last", conv_net, _images, frozenset({"channels_last"})),
    ModelCase("tied_gpt", TinyGPT, _tokens),
    ModelCase(
        "bfloat16",
        lambda: mlp(6, 40, 30, 4, dtype=torch.bfloat16),
        _classify((8, 6), torch.bfloat16),
        frozenset({"bfloat16"}),
    ),
    ModelCase("complex", ComplexLinear, _classify((8, 6)), frozenset({"complex"})),
    ModelCase("double", lambda: mlp(6, 40, 30, 4, dtype=torch.float64), _classify((8, 6), torch.float64)),
    ModelCase("sparse_embedding", lambda: nn.Embedding(100, 12, sparse=True), _embedded, frozenset({"sparse"})),
)


# -- optimizers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer and what it cannot do.

    `decay` says how weight decay enters a step: "decoupled", "sgd" (through momentum), "adaptive" (through momentum
    and a scale per element) or "" where there is none.
    """

    name: str
    cls: type[Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)
    decay: str = ""
    closure: bool = False
    refuses: frozenset[str] = frozenset()
    matrices_only: bool = False

    def make(self, model: nn.Module, **more: Any) -> Optimizer:
        params = [p for p in model.parameters() if p.requires_grad and (p.dim() == 2 or not self.matrices_only)]
        return self.cls(params, **{**self.settings, **more})

    def suits(self, model: ModelCase) -> bool:
        return not self.refuses & model.traits


def _case(
    name: str, cls: type[Optimizer], *, refuses: str = "sparse", closure: bool = False, decay: str = "", **settings: Any
) -> OptimizerCase:
    return OptimizerCase(name, cls, settings, decay, closure, frozenset(refuses.split()), cls.__name__ == "Muon")


_o = torch.optim
# What older versions of PyTorch lack.
_DECOUPLED = "decoupled_weight_decay" in inspect.signature(_o.Adam).parameters
MUON = getattr(_o, "Muon", None)
OPTIMIZERS = (
    _case("sgd", _o.SGD, refuses="", lr=0.05),
    _case("sgd_momentum_decay", _o.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, decay="sgd"),
    _case("sgd_nesterov", _o.SGD, lr=0.05, momentum=0.9, nesterov=True),
    _case("sgd_dampening", _o.SGD, lr=0.05, momentum=0.9, dampening=0.5, weight_decay=0.1, decay="sgd"),
    _case("sgd_maximize", _o.SGD, lr=0.01, maximize=True),
    _case("sgd_foreach", _o.SGD, lr=0.05, momentum=0.9, foreach=True),
    # torch's own fused SGD does not repeat itself in bfloat16 (2.13, CPU), so nothing can be compared with it there
    _case("sgd_fused", _o.SGD, refuses="sparse complex bfloat16", lr=0.05, momentum=0.9, fused=True),
    _case("adam", _o.Adam, lr=0.01, weight_decay=0.1, decay="adaptive"),
    _case("adam_amsgrad", _o.Adam, lr=0.01, amsgrad=True),
    *(
        [_case("adam_decoupled", _o.Adam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, decay="decoupled")]
        * _DECOUPLED
    ),
    _case("adamw", _o.AdamW, lr=0.01, weight_decay=0.1, decay="decoupled"),
    _case("adamw_foreach", _o.AdamW, lr=0.01, foreach=True),
    _case("adamw_fused", _o.AdamW, refuses="sparse complex", lr=0.01, fused=True),
    _case("adamw_capturable_lr", _o.AdamW, refuses="sparse complex", lr=torch.tensor(0.01), fused=True),
    _case("nadam", _o.NAdam, lr=0.01, weight_decay=0.1, decay="adaptive"),
    _case("nadam_decoupled", _o.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, decay="decoupled"),
    _case("radam", _o.RAdam, lr=0.01),
    _case("adamax", _o.Adamax, lr=0.01),
    _case("adagrad", _o.Adagrad, refuses="complex", lr=0.01),
    _case("adagrad_fused", _o.Adagrad, refuses="sparse complex", lr=0.01, fused=True),
    _case("adadelta", _o.Adadelta, lr=1.0),
    _case("rmsprop_centered", _o.RMSprop, lr=0.01, momentum=0.9, centered=True),
    _case("rprop", _o.Rprop, lr=0.01),
    _case("asgd", _o.ASGD, lr=0.05, weight_decay=0.1, decay="sgd"),
    _case("adafactor", _o.Adafactor, refuses="sparse complex", lr=0.01, weight_decay=0.1, decay="decoupled"),
    _case("sparse_adam", _o.SparseAdam, refuses="complex", lr=0.01),
    _case("lbfgs", _o.LBFGS, refuses="sparse channels_last", closure=True, lr=0.1, max_iter=3),
    *([_case("muon", MUON, refuses="sparse complex", lr=0.01, weight_decay=0.1, decay="decoupled")] if MUON else []),
)
ONLY_SPARSE = frozenset({"sparse_adam"})


# Every optimizer with every model that it can train.
PAIRS = [
    (optimizer, model)
    for optimizer in OPTIMIZERS
    for model in MODELS
    if optimizer.suits(model) and (optimizer.name not in ONLY_SPARSE or "sparse" in model.traits)
]


def train_step(model: nn.Module, optimizer: Optimizer, case: ModelCase, *, closure: bool = False) -> Tensor:
    """One step on a fresh batch; the gradients stay in place."""
    if closure:
        state = torch.get_rng_state()

        def again() -> Tensor:
            torch.set_rng_state(state)  # the same batch at every evaluation
            optimizer.zero_grad()
            loss = case.loss(model)
            loss.backward()
            return loss

        loss = optimizer.step(again)
        assert loss is not None
        return torch.as_tensor(loss).detach()
    optimizer.zero_grad()
    loss = case.loss(model)
    loss.backward()
    optimizer.step()
    return loss.detach()


# -- comparing two runs -----------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Everything that training leaves behind and that a measurement must not have touched."""

    params: dict[str, Tensor]
    grads: dict[str, Tensor | None]
    state: dict[Any, Any]
    state_dict: dict[str, Any]
    random_states: tuple[Any, ...]
    losses: list[Tensor]


def outcome(model: nn.Module, optimizer: Optimizer, losses: list[Tensor]) -> Outcome:
    place = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    legacy = np.random.get_state()  # noqa: NPY002
    return Outcome(
        params=dict(model.state_dict()),
        grads={name: p.grad for name, p in model.named_parameters()},
        state={place.get(id(p), p): value for p, value in optimizer.state.items()},
        state_dict=optimizer.state_dict(),
        random_states=(torch.get_rng_state(), legacy, random.getstate()),
        losses=losses,
    )


def assert_bitwise(got: Any, want: Any, where: str = "") -> None:
    """Equality of nested data to the last bit, NaN equal to NaN, with the place of the first difference."""
    assert type(got) is type(want), f"{where}: {type(got)} is not {type(want)}"
    if isinstance(want, Tensor):
        assert got.dtype == want.dtype, where
        assert got.shape == want.shape, where
        assert got.is_sparse == want.is_sparse, where
        a, b = (x.coalesce() if x.is_sparse else x for x in (got.detach(), want.detach()))
        if a.is_sparse:
            assert_bitwise(a.indices(), b.indices(), f"{where}.indices")
            a, b = a.values(), b.values()
        else:
            assert a.stride() == b.stride(), where
        a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
        a, b = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        assert torch.equal(a, b), f"{where}: tensors differ"
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype, where
        assert got.tobytes() == want.tobytes(), f"{where}: arrays differ"
    elif isinstance(want, dict):
        assert list(got) == list(want), f"{where}: keys {list(got)} and {list(want)}"
        for key in want:
            assert_bitwise(got[key], want[key], f"{where}[{key!r}]")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), f"{where}: lengths {len(got)} and {len(want)}"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_bitwise(a, b, f"{where}[{i}]")
    elif hasattr(want, "__dataclass_fields__"):
        for name in want.__dataclass_fields__:
            assert_bitwise(getattr(got, name), getattr(want, name), f"{where}.{name}")
    else:
        assert got == want or (got != got and want != want), f"{where}: {got!r} is not {want!r}"


def assert_same_record(got: Any, want: Any, *, skip: tuple[str, ...] = ()) -> None:
    """Two records with the same rows, layers and values to the last bit."""
    from thermoclaw.quantities import TABLE

    assert got.steps.tolist() == want.steps.tolist()
    assert got.layers == want.layers
    for name in TABLE:
        if name not in skip:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The 1797 handwritten digits of scikit-learn: pixels in [0, 1] and labels."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    data = sklearn_datasets.load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16.0, torch.tensor(data.target)
