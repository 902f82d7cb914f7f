"""TimestepAffinity against gradients that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl.callbacks import TimestepAffinity
from tests.diffusion.toys import make_data, make_diffusion
from tests.toys import make_trainer


class Turning(pl.LightningModule):
    """The gradient of timestep t is the unit vector at t times thirty degrees, times the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.point = torch.nn.Parameter(torch.zeros(2))
        self.unused = torch.nn.Parameter(torch.zeros(3))
        self.sizes: list[int] = []

    def shared_parameters(self) -> list[torch.nn.Parameter]:
        return [self.point, self.unused]

    def timestep_loss(self, batch: Tensor, timestep: int) -> Tensor:
        self.sizes.append(len(batch))
        angle = timestep * math.pi / 6
        return batch.mean() * (self.point * torch.tensor([math.cos(angle), math.sin(angle)])).sum()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.point.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(DummyLogger):
    """Keeps the numbers that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        found = {name: value for name, value in metrics.items() if name.startswith("affinity")}
        if found:
            self.seen[step or 0] = found


def fit(
    watcher: TimestepAffinity, folder: Path, module: pl.LightningModule | None = None, **options: Any
) -> pl.Trainer:
    trainer = make_trainer(max_epochs=-1, default_root_dir=folder, callbacks=[watcher], **{"max_steps": 4, **options})
    trainer.fit(module or Turning(), DataLoader(torch.arange(1.0, 17.0), batch_size=4))
    return trainer


def test_affinity_is_the_cosine_of_the_gradients(tmp_path: Path) -> None:
    watcher, module = TimestepAffinity(every_n_steps=2, spacing=2, num_timesteps=7, num_samples=8), Turning()
    fit(watcher, tmp_path, module)
    timesteps = torch.tensor([0, 2, 4, 6])
    torch.testing.assert_close(
        watcher.affinity, ((timesteps[:, None] - timesteps) * math.pi / 6).cos(), atol=1e-6, rtol=0
    )
    assert watcher.timesteps == timesteps.tolist()
    assert watcher.moments == 2
    assert watcher.by_gap() == pytest.approx({2: 0.5, 4: -0.5, 6: -1.0}, abs=1e-6)
    assert module.sizes == [4] * 16  # two batches for each of four timesteps, twice
    assert (tmp_path / "affinity-timesteps.png").is_file()


def test_gradients_are_of_the_mean_over_the_samples(tmp_path: Path) -> None:
    class Signs(Turning):
        def timestep_loss(self, batch: Tensor, timestep: int) -> Tensor:
            # timestep 0: gradient (mean of the batch, 1); timestep 1: gradient (0, 1)
            weight = batch.mean() - 4.5 if timestep == 0 else batch.new_zeros(())
            return weight * self.point[0] + self.point[1]

    watcher = TimestepAffinity(every_n_steps=2, spacing=1, num_timesteps=2, num_samples=5)
    fit(watcher, tmp_path, Signs(), max_steps=2)
    assert watcher.affinity[0, 1].item() == pytest.approx(1.0)  # the first eight numbers have the mean 4.5


def test_mean_cosines_by_gap_are_logged(tmp_path: Path) -> None:
    logger = Numbers()
    fit(TimestepAffinity(every_n_steps=3, spacing=3, num_timesteps=7), tmp_path, logger=[logger])
    assert set(logger.seen) == {3}
    assert logger.seen[3] == pytest.approx({"affinity/gap/3": 0.0, "affinity/gap/6": -1.0}, abs=1e-6)


def test_clusters_cover_all_timesteps() -> None:
    watcher = TimestepAffinity(spacing=10, num_timesteps=45)
    watcher._total, watcher.moments = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)), 1
    assert watcher.clusters(2) == [(0, 19), (20, 44)]


def test_a_resumed_run_keeps_what_was_measured(tmp_path: Path) -> None:
    whole, first, second = (TimestepAffinity(every_n_steps=4, spacing=2, num_timesteps=5) for _ in range(3))
    fit(whole, tmp_path, max_steps=8)
    trainer = fit(first, tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer = make_trainer(max_epochs=-1, max_steps=8, default_root_dir=tmp_path, callbacks=[second])
    trainer.fit(Turning(), DataLoader(torch.arange(1.0, 17.0), batch_size=4), ckpt_path=tmp_path / "half.ckpt")
    assert second.moments == whole.moments == 2
    torch.testing.assert_close(second.affinity, whole.affinity)


def test_it_watches_a_diffusion_model_without_disturbing_it(tmp_path: Path) -> None:
    def train(callbacks: list[TimestepAffinity]) -> dict[str, Any]:
        module = make_diffusion()
        torch.manual_seed(4)
        make_trainer(max_steps=6, callbacks=callbacks, default_root_dir=tmp_path).fit(module, make_data())
        return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}

    watcher = TimestepAffinity(every_n_steps=3, spacing=4, num_samples=16)
    watched, alone = train([watcher]), train([])
    assert all(watched[name].equal(value) for name, value in alone.items())
    assert watcher.affinity.shape == (5, 5)
    assert watcher.num_timesteps == 20
    torch.testing.assert_close(watcher.affinity.diagonal(), torch.ones(5))


class Plain(pl.LightningModule):
    """Has nothing to do with diffusion."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Plain has no schedule.num_steps; pass num_timesteps="),
        ({"num_timesteps": 5}, r"Plain has no timestep_loss\(\); pass loss="),
        (
            {"num_timesteps": 5, "loss": lambda module, batch, t: batch},
            r"Plain has no shared_parameters\(\); pass shared=",
        ),
    ],
)
def test_a_module_that_lacks_something_is_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"TimestepAffinity: {message}"):
        TimestepAffinity(**options).on_fit_start(make_trainer(), Plain())


@pytest.mark.parametrize("argument", ["every_n_steps", "spacing", "num_samples"])
def test_numbers_must_be_positive(argument: str) -> None:
    with pytest.raises(ValueError, match=f"TimestepAffinity: {argument} must be at least 1, got 0"):
        TimestepAffinity(**{argument: 0})


def test_reading_before_a_measurement_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nothing was measured yet; train for at least 7 steps"):
        _ = TimestepAffinity(every_n_steps=7).affinity
