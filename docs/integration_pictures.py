"""Make the pictures that the pages on the Trainer, Lightning and Accelerate show: what their examples leave.

    python docs/integration_pictures.py

Writes docs/images/NAME_dashboard.png for each, and prints the console lines that the pages quote. A minute on two
cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pages import shrink  # beside this script

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "huggingface": ["huggingface_trainer.py", "--weight-decay", "5"],
    "lightning": ["lightning_trainer.py", "--epochs", "12"],
    "accelerate": ["accelerate_loop.py", "--lr", "2"],
    "": ["lightning_trainer.py", "--lr", "0.1", "--early-stop", "HIGH"],
}


def main() -> None:
    for name, (script, *arguments) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "examples" / script), *arguments, "--folder", folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            lines = [line.split("\r")[-1] for line in done.stdout.splitlines()]
            print(f"$ {' '.join([script, *arguments])}")
            print("\n".join(line for line in lines if line.startswith("Thermoclaw")).replace(folder, "FOLDER"), "\n")
            if name:
                (picture,) = Path(folder).rglob("thermoclaw_dashboard.png")
                shrink(picture, ROOT / "docs" / "images" / f"{name}_dashboard.png")


if __name__ == "__main__":
    main()
