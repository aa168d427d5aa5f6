"""Watch a Hugging Face Trainer with one line: a small GPT-2 on real English, healthy or dying of weight decay.

    python examples/huggingface_trainer.py                  # AdamW, a healthy run
    python examples/huggingface_trainer.py --weight-decay 5 # SGD with momentum and a decay that erodes the weights

It needs the extras `hf` and `viz` and nothing from a network: the model is made from a config, and the text is the
English of Python's own language reference. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from thermoclaw.integrations.huggingface import ThermoclawCallback

VOCAB_SIZE, LENGTH = 1024, 64


class English(torch.utils.data.Dataset):
    """Windows of text in words and marks; whatever is not among the commonest shares one token."""

    def __init__(self) -> None:
        pieces = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
        common = [piece for piece, _ in Counter(pieces).most_common(VOCAB_SIZE - 1)]
        place = {piece: number for number, piece in enumerate(common, start=1)}
        tokens = torch.tensor([place.get(piece, 0) for piece in pieces])
        self.windows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weight-decay", type=float, default=0.01, help="with 1 or more, SGD with momentum is used")
    parser.add_argument("--folder", default="thermoclaw_hf_run")
    choice = parser.parse_args()

    set_seed(0)
    shape = {"n_embd": 96, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": VOCAB_SIZE}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))

    args = TrainingArguments(
        output_dir=choice.folder,
        max_steps=choice.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        weight_decay=choice.weight_decay,
        warmup_steps=choice.steps // 20,
        logging_steps=20,
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],  # ["tensorboard", "wandb"] where you have them: the numbers go there too
    )
    optimizer = None  # the Trainer's AdamW
    if choice.weight_decay >= 1:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=choice.weight_decay)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=English(),
        callbacks=[ThermoclawCallback()],  # the one line
        optimizers=(optimizer, None),
    )
    trainer.train()


if __name__ == "__main__":
    main()
