"""Watchers in modules of both packages that know nothing of this one, with automatic and manual optimization."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn

from tests.callbacks.cases import WATCHERS, Case
from tests.callbacks.scenes import TinyEncoder, make_loader, make_tasks


class _Scenes:
    """What the modules share: a trunk, a convolution a task, and the abilities that some watchers ask for."""

    def build(self, manual: bool) -> None:
        self.automatic_optimization = not manual
        self.encoder = TinyEncoder()
        self.tasks = nn.ModuleDict(make_tasks())
        widths = {"segmentation": 2, "edges": 1, "mean": 1}
        self.heads = nn.ModuleDict({name: nn.Conv2d(8, width, 1) for name, width in widths.items()})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)[0]
        found = {name: nn.functional.interpolate(head(features), scale_factor=2) for name, head in self.heads.items()}
        return found | {"mean": found["mean"].mean((2, 3))}

    def task_losses(self, batch: Any) -> dict[str, Tensor]:
        outputs = self.forward(batch[0])
        return {name: task.loss(outputs[name], batch[1][name]) for name, task in self.tasks.items()}

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = torch.stack(list(self.task_losses(batch).values())).sum()
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():  # type: ignore[attr-defined]
            optimizer.zero_grad()
        self.manual_backward(loss)  # type: ignore[attr-defined]
        for optimizer in self.optimizers():  # type: ignore[attr-defined]
            optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        losses = self.task_losses(batch)
        self.log_dict({f"val/{name}/loss": loss for name, loss in losses.items()}, batch_size=3)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.SGD(self.parameters(), lr=0.05)  # type: ignore[attr-defined]
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.encoder, self.heads)]


class Scenes(_Scenes, pl.LightningModule):
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.build(manual)


class ScenesOfTheOtherPackage(_Scenes, pytorch_lightning.LightningModule):
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.build(manual)


KINDS: dict[str, tuple[Any, Any, bool]] = {
    "lightning, manual": (pl, Scenes, True),
    "pytorch_lightning": (pytorch_lightning, ScenesOfTheOtherPackage, False),
    "pytorch_lightning, manual": (pytorch_lightning, ScenesOfTheOtherPackage, True),
}


def train(kind: str, folder: Path, callbacks: list[Any]) -> tuple[dict[str, Tensor], list[float]]:
    """Return weights, and the random numbers that would come next."""
    package, module_class, manual = KINDS[kind]
    pl.seed_everything(3, verbose=False)
    module = module_class(manual)
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, make_loader(shuffle=True), make_loader())
    return {name: value.detach().clone() for name, value in module.state_dict().items()}, torch.rand(2).tolist()


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return functools.cache(lambda kind: train(kind, tmp_path_factory.mktemp("unwatched"), []))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WATCHERS, ids=lambda c: c.id)
def test_watcher_sees_something_and_changes_nothing(case: Case, kind: str, unwatched: Any, tmp_path: Path) -> None:
    watcher = case.build()
    weights, numbers = train(kind, tmp_path, [watcher])
    expected, expected_numbers = unwatched(kind)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert numbers == expected_numbers
    assert str(watcher.state_dict()) != str(case.build().state_dict()) or list(tmp_path.rglob("*.*"))
