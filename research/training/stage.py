"""Runs one stage of the training: python research/training/stage.py train_flux --output FOLDER --seconds 300.

For several GPUs: torchrun --nproc-per-node 2 research/training/stage.py train_flux --output FOLDER --seconds 300.
A stage that was stopped goes on from its checkpoint when it is run again with the same folders.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "train_autoencoder": "train_autoencoder.run",
    "train_reader": "train_reader.run",
    "train_flux": "train_flux.run",
    "warm_up": "train_flux.warm_up",
    "train_lora": "train_lora.run",
    "evaluate": "evaluate.run",
}


def main() -> None:
    """Run the stage that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        raise SystemExit(f"{__doc__}\nStages: {', '.join(STAGES)}.")
    sys.path.insert(0, str(ROOT / "tools"))  # where the pack has an importable name
    rooms = "svdquant_pack.research.training"
    importlib.import_module(f"{rooms}.processes").hide_other_gpus()
    options = importlib.import_module(f"{rooms}.options").parse(sys.argv[2:])
    options.output.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    module, function = STAGES[sys.argv[1]].split(".")
    getattr(importlib.import_module(f"{rooms}.{module}"), function)(options)


if __name__ == "__main__":
    main()
