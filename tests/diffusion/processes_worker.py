"""Train a diffusion model as one of several processes, or alone; started by ``test_processes.py``.

Usage: python -m tests.diffusion.processes_worker OUT_FILE
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lightning_mtl.balancers import Balancer, NashMTL, PCGrad, UncertaintyWeighting
from lightning_mtl.callbacks import TimestepAffinity
from lightning_mtl.data import MultiTaskDataModule
from lightning_mtl.diffusion import DiffusionTaskModule
from lightning_mtl.diffusion.denoising import NoisySamples
from lightning_mtl.nn import MLPDenoiser, NoiseSchedule

GLOBAL_BATCH, ROWS, TIMESTEPS = 10, 40, 20
BALANCERS: dict[str, Callable[[], Balancer | None]] = {
    "equal": lambda: None,
    "uncertainty": UncertaintyWeighting,
    "pcgrad": PCGrad,
    "nash": lambda: NashMTL(every_n_steps=2),
}


class Rows(MultiTaskDataModule):
    """Rows of a sample, its noise and its timestep, in fixed order."""

    def make_dataset(self, split: str) -> Dataset[Any]:
        generator = torch.Generator().manual_seed(3)
        numbers = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
        timesteps = torch.randint(TIMESTEPS, (ROWS, 1), generator=generator)
        timesteps[::2] = timesteps[::2] % 3  # one process sees little else than the first cluster
        return TensorDataset(torch.cat([numbers, timesteps.double()], 1), torch.zeros(ROWS))

    def collate(self, samples: list[Any]) -> Any:
        inputs, _ = super().collate(samples)
        return inputs, {}

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.sampler.shuffle = False
        return loader


class Given(DiffusionTaskModule):
    """Takes noise and timesteps from the batch, so that they do not depend on the number of processes."""

    drawn: Tensor

    def noisy_batch(self, batch: Any, seed: int | None = None, average: bool = False) -> Any:
        inputs = batch[0]
        rows, counts = [], {}
        for name, (first, last) in self.clusters.items():
            part = inputs[(inputs[:, 4] >= first) & (inputs[:, 4] <= last)]
            if len(part):
                rows.append(part)
                counts[name] = len(part)
        table = torch.cat(rows)
        clean, noise, timesteps = table[:, :2], table[:, 2:4], table[:, 4].long()
        noisy = NoisySamples(self.schedule.add_noise(clean, noise, timesteps), timesteps, counts, None, average)
        return noisy, dict(zip(counts, torch.split(noise, list(counts.values())), strict=True))

    def on_train_start(self) -> None:
        state = torch.get_rng_state()
        torch.manual_seed(11)
        noisy, _ = super().noisy_batch(torch.zeros(9, 2, dtype=torch.float64, device=self.device))
        torch.set_rng_state(state)
        self.drawn = noisy.timesteps


def loss_at(module: Any, batch: Any, timestep: int) -> Tensor:
    clean, noise = batch[0][:, :2], batch[0][:, 2:4]
    timesteps = torch.full((len(clean),), timestep)
    return (module.denoiser(module.schedule.add_noise(clean, noise, timesteps), timesteps) - noise).square().mean()


def train(name: str, world: int) -> dict[str, Tensor]:
    pl.seed_everything(0)
    module = Given(
        MLPDenoiser(hidden=[8], num_frequencies=3, num_steps=TIMESTEPS),
        NoiseSchedule(TIMESTEPS, beta_end=0.2),
        num_clusters=3,
        balancer=BALANCERS[name](),
        ema_decay=0.9,
    )
    affinity = TimestepAffinity(every_n_steps=2, spacing=5, num_samples=GLOBAL_BATCH // world, loss=loss_at)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        max_steps=4,
        max_epochs=-1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[affinity] if name == "equal" else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=os.environ["ROOT_DIR"],
    )
    trainer.fit(module, Rows(batch_size=GLOBAL_BATCH // world, num_workers=0))
    found = {key: value.detach().clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    found["drawn"] = module.drawn
    if name == "equal":
        found["affinity"] = affinity.affinity
    return found


def main(out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ["ROOT_DIR"] = os.path.dirname(out)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.save({name: train(name, world) for name in BALANCERS}, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
