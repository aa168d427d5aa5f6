"""Watch a LoRA run of the Hugging Face Trainer with one line: adapters on a small GPT-2, English by letters.

    python examples/lora_trainer.py                    # a healthy run
    python examples/lora_trainer.py --learning-rate 3  # adapters that are driven apart

It needs the extras `hf` and `viz`, and PEFT (`pip install peft`); nothing comes from a network. The model is made from
a config, so its frozen weights know nothing: the adapters and the last layers learn what there is to learn. With
TRL's `SFTTrainer`, `DPOTrainer` or `GRPOTrainer` the callback is given in the same way. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from thermoclaw.integrations.huggingface import ThermoclawCallback

LENGTH = 64


class Letters(torch.utils.data.Dataset):
    """Windows of the English of Python's language reference, a token for each byte."""

    def __init__(self) -> None:
        text = " ".join(topics[name] for name in sorted(topics)).encode()
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.windows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--folder", default="thermoclaw_lora_run")
    choice = parser.parse_args()

    set_seed(0)
    shape = {"n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": 256}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.print_trainable_parameters()

    args = TrainingArguments(
        output_dir=choice.folder,
        max_steps=choice.steps,
        per_device_train_batch_size=8,
        learning_rate=choice.learning_rate,
        warmup_steps=choice.steps // 20,
        logging_steps=20,
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Letters(),
        callbacks=[ThermoclawCallback()],  # the one line
    )
    trainer.train()


if __name__ == "__main__":
    main()
