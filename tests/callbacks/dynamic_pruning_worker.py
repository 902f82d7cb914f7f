"""Train under DynamicPruning as one of several processes; started by ``test_dynamic_pruning_processes.py``.

Usage: python -m tests.callbacks.dynamic_pruning_worker OUT_FOLDER
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from lightning_mtl.callbacks import DynamicPruning
from tests.callbacks.test_dynamic_pruning import EPOCHS, SGD, Diary, make_loader
from tests.nn.test_dynamic_pruning import make_module
from tests.toys import make_trainer


def main(folder: Path) -> None:
    for mode in ("decoupled", "joint"):
        module, diary = make_module(mode, optimizer=SGD), Diary()
        # plain ddp: a parameter without a gradient would stop the run
        trainer = make_trainer(
            max_epochs=EPOCHS,
            callbacks=[DynamicPruning(1, 0.5), diary],
            strategy="ddp",
            devices=int(os.environ["WORLD_SIZE"]),
            default_root_dir=folder,
        )
        trainer.fit(module, make_loader(), make_loader())
        torch.save(
            {"phases": diary.phases, "predictors": diary.predictors, "weights": dict(module.named_parameters())},
            folder / f"{mode}-{trainer.global_rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
