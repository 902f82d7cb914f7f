"""What GradientConflict sees."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_mtl.balancers import UPGrad
from lightning_mtl.callbacks import GradientConflict
from lightning_mtl.tasks import Regression
from tests.toys import Table, loader, make_module, make_trainer

SGD = functools.partial(torch.optim.SGD, lr=0.0)  # the model stays where it is, so gradients can be computed afterwards


def explicit_cosines(module: Any, batch: Any) -> torch.Tensor:
    rows = []
    for loss in module.task_losses(batch).values():
        gradients = torch.autograd.grad(loss, list(module.encoder.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    unit = nn.functional.normalize(torch.stack(rows), dim=1)
    return unit @ unit.T


@pytest.mark.parametrize("balancer", [None, UPGrad], ids=["computed", "from the balancer"])
def test_cosines_are_those_of_an_explicit_jacobian(balancer: Any, tmp_path: Path) -> None:
    module = make_module(optimizer=SGD, balancer=None if balancer is None else balancer())
    watcher = GradientConflict(every_n_steps=1)
    make_trainer(callbacks=[watcher], default_root_dir=tmp_path).fit(module, loader(Table(8), 8))
    assert watcher.tasks == ("size", "kind", "age")
    torch.testing.assert_close(
        torch.tensor(watcher.cosines[0]), explicit_cosines(module, Table(8).batch()), rtol=1e-4, atol=1e-5
    )


def test_names_and_picture_reach_the_logger(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run")
    trainer = make_trainer(logger=logger, callbacks=[GradientConflict(every_n_steps=4)])
    trainer.fit(make_module(), loader())
    assert (Path(logger.log_dir) / "gradients-conflict.png").is_file()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    names = {"gradients/conflict_share", "gradients/magnitude_similarity", "gradients/cosine/size-kind"}
    assert names | {"gradients/norm/age"} <= set(events.Tags()["scalars"])
    assert "gradients/conflict" in events.Tags()["images"]


def test_a_resumed_run_keeps_what_was_seen(tmp_path: Path) -> None:
    whole, first, second = (GradientConflict(every_n_steps=2) for _ in range(3))
    make_trainer(max_epochs=2, callbacks=[whole], default_root_dir=tmp_path).fit(make_module(), loader())
    trainer = make_trainer(max_epochs=1, callbacks=[first], default_root_dir=tmp_path)
    trainer.fit(make_module(), loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_trainer(max_epochs=2, callbacks=[second], default_root_dir=tmp_path)
    resumed.fit(make_module(seed=1), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert second.state_dict() == whole.state_dict()


class _Foreign:
    """Knows nothing of this package."""

    def build(self) -> None:
        self.trunk, self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 1), nn.Linear(4, 3)

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        inputs, targets = batch
        features = nn.functional.dropout(self.trunk(inputs), 0.2)
        return {
            "a": nn.functional.mse_loss(self.a(features), targets["size"]),
            "b": nn.functional.cross_entropy(self.b(features), targets["kind"]),
        }

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.stack(list(self.losses(batch).values())).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]


class Foreign(_Foreign, pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.build()


class ForeignOfTheOtherPackage(_Foreign, pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.build()


class Manual(Foreign):
    """Two optimizers, both stepped in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        first, second = self.optimizers()  # type: ignore[misc, union-attr]
        losses = self.losses(batch)
        for optimizer, loss in ((first, losses["a"]), (second, losses["b"])):
            optimizer.zero_grad()
            self.manual_backward(loss, retain_graph=optimizer is first)
        first.step()
        second.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.trunk.parameters(), 0.1), torch.optim.SGD(self.b.parameters(), 0.1)


@pytest.mark.parametrize(
    ("kind", "package", "looks"),
    [(Foreign, pl, [2, 4, 6, 8]), (ForeignOfTheOtherPackage, pytorch_lightning, [2, 4, 6, 8]), (Manual, pl, [3, 5, 7])],
    ids=["lightning.pytorch", "pytorch_lightning", "manual optimization"],
)
def test_it_watches_in_both_packages_and_with_several_optimizers(
    kind: Any, package: Any, looks: list[int], tmp_path: Path
) -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(3)
        module = kind()
        watcher = GradientConflict(2, losses=lambda m, batch: m.losses(batch), shared=lambda m: m.trunk.parameters())
        trainer = package.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            limit_train_batches=4 if kind is Manual else 8,
            callbacks=[watcher] if watched else [],
        )
        trainer.fit(module, loader())
        found.append(({name: value.clone() for name, value in module.state_dict().items()}, torch.rand(3)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert watcher.steps == looks  # the first step of a batch in which one is due


def test_another_module_gives_two_functions(tmp_path: Path) -> None:
    watcher = GradientConflict(2, losses=lambda m, batch: m.losses(batch), shared=lambda m: m.trunk.parameters())
    trainer = make_trainer(callbacks=[watcher], logger=CSVLogger(str(tmp_path)))
    trainer.fit(Foreign(), loader())
    assert watcher.tasks == ("a", "b")
    assert watcher.steps == [2, 4, 6, 8]


def test_another_module_without_functions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"Foreign has no task_losses\(\); pass losses="):
        make_trainer(callbacks=[GradientConflict()], default_root_dir=tmp_path).fit(Foreign(), loader())


def test_one_task_alone_is_refused() -> None:
    module = make_module(tasks={"size": Regression()})
    with pytest.raises(MisconfigurationException, match=r"at least two tasks to compare, .* only \['size'\]; remove"):
        make_trainer(callbacks=[GradientConflict()]).fit(module, loader())


def test_a_cadence_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        GradientConflict(every_n_steps=0)
