"""DynamicPruning: phases, learning rate, numbers, checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import DynamicPruning
from lightning_mtl.nn import DynamicEncoder, TimmEncoder, dynamic_layers
from lightning_mtl.tasks import MulticlassClassification, Regression
from tests.nn.test_dynamic_pruning import Chain, make_batch, make_module
from tests.toys import make_module as make_dense_module
from tests.toys import make_trainer

EPOCHS = 5
SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.01)


class Diary(Callback):
    """Notes phase, learning rates and the predictors after every epoch."""

    def __init__(self) -> None:
        self.phases: list[tuple[bool, bool]] = []
        self.rates: list[list[float]] = []
        self.predictors: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layer = next(iter(dynamic_layers(pl_module).values()))
        self.phases.append((layer.masking, layer.learning))
        self.predictors.append(layer.predictor.linear.weight.detach().clone())


def make_loader() -> DataLoader[Any]:
    images, targets = make_batch(8)
    rows = [(image, {name: value[i] for name, value in targets.items()}) for i, image in enumerate(images)]
    return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


def run(
    folder: Path, *callbacks: Callback, checkpoint: Path | None = None, **arguments: Any
) -> tuple[MultiTaskModule, Diary, pl.Trainer]:
    module = make_module(optimizer=SGD, lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    diary = Diary()
    trainer = make_trainer(
        max_epochs=EPOCHS,
        callbacks=[DynamicPruning(1, 0.5), diary, *callbacks],
        default_root_dir=folder,
        log_every_n_steps=1,
        **arguments,
    )
    trainer.fit(module, make_loader(), make_loader(), ckpt_path=checkpoint)
    return module, diary, trainer


def test_the_phases_follow_the_epochs_and_stopped_predictors_stay_as_they_are(tmp_path: Path) -> None:
    _, diary, _ = run(tmp_path)
    assert diary.phases == [(False, True), (True, True), (True, True), (True, False), (True, False)]
    same = [torch.equal(a, b) for a, b in zip(diary.predictors, diary.predictors[1:], strict=False)]
    assert same == [False, False, True, True]
    encoder, heads, predictors = zip(*diary.rates, strict=True)
    assert encoder == heads
    assert encoder[-1] == pytest.approx(0.02 / 16)
    assert set(predictors) == {0.1}


def test_shares_and_accuracies_are_logged(tmp_path: Path) -> None:
    _, _, trainer = run(tmp_path, logger=CSVLogger(tmp_path))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0 < found["pruning/macs_share"] < 1
    assert 0 < found["pruning/target_macs_share"] < 1
    assert 0 < found["val/macs_share"] < 1
    assert 0 <= found["pruning/encoder.encoder.0/mask_accuracy"] <= 1
    assert 1 <= found["pruning/encoder.encoder.4/kept"] <= 6


def test_a_resumed_run_goes_on_in_its_phase_and_ends_as_the_whole_one(tmp_path: Path) -> None:
    save = partial(pl.callbacks.ModelCheckpoint, tmp_path, filename="{epoch}", save_top_k=-1)
    module, _, _ = run(tmp_path / "whole", save(), enable_checkpointing=True)
    checkpoint = tmp_path / "epoch=1.ckpt"
    resumed, diary, _ = run(tmp_path / "resumed", save(), checkpoint=checkpoint, enable_checkpointing=True)
    assert diary.phases == [(True, True), (True, False), (True, False)]
    torch.testing.assert_close(resumed.encoder.state_dict(), module.encoder.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_the_warm_up_is_dense_and_needs_no_arguments(tmp_path: Path) -> None:
    tasks = {"kind": MulticlassClassification(num_classes=3), "size": Regression()}
    module = MultiTaskModule(DynamicEncoder(TimmEncoder("resnet10t"), 0.8), tasks)
    trainer = make_trainer(max_epochs=2, callbacks=[DynamicPruning(1)], limit_train_batches=1)
    trainer.fit(module, make_loader())
    for masking in (True, False):
        for layer in dynamic_layers(module).values():
            layer.masking = masking
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        loaded = MultiTaskModule.load_from_checkpoint(tmp_path / "last.ckpt").eval()
        module.eval()
        images = make_batch()[0]
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), module(images))
        assert {layer.masking for layer in dynamic_layers(loaded).values()} == {masking}


def test_set_ups_that_cannot_work_raise() -> None:
    with pytest.raises(MisconfigurationException, match="must have dynamic convolutions"):
        make_trainer(callbacks=[DynamicPruning()]).fit(make_dense_module(), make_loader())
    with pytest.raises(MisconfigurationException, match="warmup_epochs must be smaller than max_epochs, got 3 and 2"):
        make_trainer(callbacks=[DynamicPruning(3)], max_epochs=2).fit(make_module(), make_loader())
    with pytest.raises(MisconfigurationException, match=r"cooldown=0.5 is a share of the epochs"):
        make_trainer(callbacks=[DynamicPruning(0)], max_epochs=-1, max_steps=2).fit(make_module(), make_loader())
    with pytest.raises(ValueError, match=r"cooldown must be in \(0, 1\], got 0"):
        DynamicPruning(cooldown=0)


def test_an_encoder_alone_gives_its_features() -> None:
    assert DynamicEncoder(Chain(), 0.9)(make_batch()[0]).shape == (6, 6)
