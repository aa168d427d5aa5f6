"""LoRA models and TRL's trainers with the callback: the same training, their losses, their layers by their names."""

from __future__ import annotations

import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from tests.conftest import assert_bitwise
from thermoclaw import Record
from thermoclaw.integrations import outputs
from thermoclaw.integrations.huggingface import ThermoclawCallback

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # TRL calls names that transformers renames
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# -- a language, a model, adapters -------------------------------------------------------------------------------------

PIECES = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
COMMON = [piece for piece, _ in Counter(PIECES).most_common(300)]
SENTENCES = [" ".join(PIECES[i : i + 24]) for i in range(0, 24 * 48, 24)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks.values(), *COMMON])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **marks)


def llama(kind: Any = LlamaForCausalLM, **settings: Any) -> Any:
    set_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(LlamaConfig(vocab_size=len(COMMON) + 4, **width, **heads, **marks, **settings))


def lora(**settings: Any) -> Any:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings)


# -- TRL's trainers ----------------------------------------------------------------------------------------------------


def arguments(kind: Any, folder: Path, **settings: Any) -> Any:
    usual = {"per_device_train_batch_size": 4, "max_steps": STEPS, "logging_steps": 4, "save_strategy": "no"}
    still = {"report_to": [], "use_cpu": True, "seed": 3, "disable_tqdm": True, "bf16": False, "learning_rate": 1e-3}
    return kind(str(folder), **{**usual, **still, **settings})


def sft(trl: Any, dataset: Any, folder: Path, **more: Any) -> Any:
    args = arguments(trl.SFTConfig, folder, max_length=32)
    return trl.SFTTrainer(llama(), args=args, train_dataset=dataset({"text": SENTENCES}), **more)


def dpo(trl: Any, dataset: Any, folder: Path, **more: Any) -> Any:
    args = arguments(trl.DPOConfig, folder, max_length=48)
    words = [sentence.split() for sentence in SENTENCES]
    cuts = {"prompt": slice(8), "chosen": slice(8, 16), "rejected": slice(16, None)}
    data = dataset({name: [" ".join(w[cut]) + " " for w in words] for name, cut in cuts.items()})
    more["ref_model"] = None if more["peft_config"] else llama()
    return trl.DPOTrainer(llama(), args=args, train_dataset=data, **more)


def reward(trl: Any, dataset: Any, folder: Path, **more: Any) -> Any:
    args = arguments(trl.RewardConfig, folder, max_length=48)
    data = dataset({"chosen": SENTENCES[:24], "rejected": SENTENCES[24:]})
    return trl.RewardTrainer(llama(LlamaForSequenceClassification, num_labels=1), args=args, train_dataset=data, **more)


def grpo(trl: Any, dataset: Any, folder: Path, **more: Any) -> Any:
    def different_words(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text.split()))) for text in completions]

    args = arguments(trl.GRPOConfig, folder, max_completion_length=8, num_generations=4, num_iterations=2)
    data = dataset({"prompt": [" ".join(sentence.split()[:8]) for sentence in SENTENCES]})
    return trl.GRPOTrainer(llama(), reward_funcs=different_words, args=args, train_dataset=data, **more)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("make", [sft, dpo, reward, grpo])
def test_trls_trainers(
    make: Callable[..., Any], adapters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if make is reward and adapters:
        pytest.skip("one trainer with a head of its own is enough")
    callback = ThermoclawCallback(plot_on_end=False, quiet=True, strict=True)
    weights, random = [], []
    for callbacks in ([], [callback]):
        set_seed(1)
        more = {"processing_class": tokenizer(), "peft_config": lora(task_type="CAUSAL_LM") if adapters else None}
        trainer = make(trl, datasets.Dataset.from_dict, tmp_path, callbacks=callbacks, **more)
        trainer.train()
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        random.append(torch.get_rng_state())
    assert_bitwise(*weights)
    assert_bitwise(*random)
    record = callback.observer.record()
    assert record.steps.tolist() == list(range(1, STEPS + 1))
    logged = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    assert sorted(logged) == [4, 8, 12]
    means = [record.loss[step - 4 : step].mean() for step in logged]
    np.testing.assert_allclose(means, list(logged.values()), rtol=1e-3, atol=1e-6)
    names = [".".join(name.split(".")[:-1]) for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert sorted(record.layer_names) == sorted(set(names))
    assert all(("lora_" in name) == adapters for name in record.layer_names)
    assert callback.report.healthy
    assert callback.alarms == []
    assert Record.load(tmp_path / outputs.RECORD_FILE).num_steps == STEPS


# -- PEFT with the Trainer itself --------------------------------------------------------------------------------------


def run_example(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lora_trainer.py", "--folder", str(folder), *options])
    runpy.run_path(str(ROOT / "examples" / "lora_trainer.py"), run_name="__main__")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Trainer makes a second group for what has no decay, which here is nothing."""
    run_example(tmp_path, monkeypatch, "--steps", "40")
    out = capsys.readouterr().out
    assert "Thermoclaw: healthy.\n" in out
    assert "8 layers" in out
    record = Record.load(tmp_path / outputs.RECORD_FILE)
    assert [len(groups) for groups in record.meta["layer_groups"].values()] == [1] * 8
    assert len(record.meta["param_groups"]) == 2
    assert all("lora_" in name for name in record.layer_names)


def test_advice_names_the_rate_of_the_run_though_it_begins_and_ends_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(tmp_path, monkeypatch, "--steps", "150", "--learning-rate", "0.3")
    assert "Lower the learning rate from 0.3 to" in " ".join(capsys.readouterr().out.split())
