"""Balancers that read validation losses, in a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import FAMO, Balancer, CoBa, EqualWeighting
from lightning_mtl.callbacks import ValidationLosses
from lightning_mtl.data import DigitTasksDataModule
from lightning_mtl.nn import CausalLanguageModel
from lightning_mtl.tasks import LanguageModeling
from tests.toys import Table, loader, make_trainer
from tests.toys import make_module as make_table_module


class Watch(Callback):
    """Notes weights, validation losses seen by the balancer, and whether the network is training."""

    def __init__(self) -> None:
        self.weights: list[list[float]] = []
        self.training: list[bool] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.weights.append([float(weight) for weight in pl_module.balancer.weights.values()])
        self.training.append(pl_module.encoder.training)


def make_module(balancer: Balancer) -> MultiTaskModule:
    torch.manual_seed(0)
    model = CausalLanguageModel(14, dim=8, depth=1, positions="learned", max_length=16, dropout=0.1)
    return MultiTaskModule(model, {name: LanguageModeling() for name in ("reverse", "max")}, balancer)


def data(**options: Any) -> DigitTasksDataModule:
    return DigitTasksDataModule(num_train=80, num_val=6, batch_size=8, **options)


def fit(balancer: Balancer, folder: Path, *callbacks: Callback, **options: Any) -> tuple[MultiTaskModule, Watch]:
    pl.seed_everything(1, verbose=False)
    module, watch = make_module(balancer), Watch()
    settings = {"max_epochs": 1, "limit_val_batches": 0, "default_root_dir": folder, **options}
    path = settings.pop("ckpt_path", None)
    make_trainer(callbacks=[*callbacks, watch], **settings).fit(module, data(), ckpt_path=path)
    return module, watch


def same(one: MultiTaskModule, two: MultiTaskModule) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_watching_disturbs_nothing_and_every_interval_is_observed(tmp_path: Path) -> None:
    balancer = CoBa(warmup_steps=1000, update_interval=3)  # equal weights throughout
    module, watch = fit(balancer, tmp_path, ValidationLosses())
    plain, _ = fit(EqualWeighting(normalize=True), tmp_path)
    assert same(module, plain)  # dropout and data too
    assert all(watch.training)
    assert balancer.get_extra_state()["observations"] == 10 // 3


def test_the_losses_are_those_of_the_next_validation_batch_without_dropout(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    class Listening(CoBa):
        def observe_validation(self, losses: Any) -> None:
            seen.append(dict(losses))
            super().observe_validation(losses)

    module, _ = fit(Listening(update_interval=5), tmp_path, ValidationLosses())
    batches = data()
    batches.setup("fit")
    module.eval()
    _, second = batches.val_dataloader()
    with torch.no_grad():
        expected = module.task_losses(second)
    assert len(seen) == 2
    assert {name: float(loss) for name, loss in seen[1].items()} == pytest.approx(
        {name: float(loss) for name, loss in expected.items()}
    )
    assert not any(loss.requires_grad for loss in seen[1].values())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("on_validation", ["coba", "famo"])
def test_a_resumed_run_goes_on_bit_by_bit(tmp_path: Path, on_validation: str) -> None:
    def make() -> Balancer:
        return CoBa(warmup_steps=2, history=4) if on_validation == "coba" else FAMO(on="val", update_interval=2)

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    whole, watch = fit(make(), tmp_path, ValidationLosses(), saver, enable_checkpointing=True)
    path = tmp_path / "step=5.ckpt"
    resumed, rest = fit(make(), tmp_path, ValidationLosses(), ckpt_path=path)
    assert same(whole, resumed)
    assert rest.weights == watch.weights[5:]
    assert watch.weights[-1] != watch.weights[0]
    assert str(whole.balancer.state_dict()) == str(resumed.balancer.state_dict())


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    balancer = CoBa(update_interval=1)
    fit(balancer, tmp_path, ValidationLosses(), accumulate_grad_batches=2)
    assert balancer.get_extra_state()["observations"] == 5


def test_tasks_in_batches_of_their_own_are_all_found() -> None:
    table = Table(32)
    table.targets["kind"][:8] = -100  # the second batch is the first with this task
    table.targets["size"][8:] = torch.nan
    balancer = CoBa(update_interval=4)
    make_trainer(callbacks=[ValidationLosses()], limit_val_batches=0).fit(
        make_table_module(balancer=balancer), loader(), loader(table)
    )
    assert balancer.get_extra_state()["observations"] == 2


def test_a_balancer_without_need_is_left_alone(tmp_path: Path) -> None:
    one, _ = fit(EqualWeighting(), tmp_path, ValidationLosses())
    two, _ = fit(EqualWeighting(), tmp_path)
    assert same(one, two)


def test_without_callback_or_validation_data_or_labels_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"CoBa: needs validation losses .*ValidationLosses"):
        fit(CoBa(), tmp_path)
    trainer = make_trainer(callbacks=[ValidationLosses()])
    with pytest.raises(MisconfigurationException, match="ValidationLosses: validation data are needed"):
        trainer.fit(make_table_module(balancer=CoBa()), loader())
    table = Table(16)
    table.targets["kind"][:] = -100
    trainer = make_trainer(callbacks=[ValidationLosses()], limit_val_batches=0)
    with pytest.raises(MisconfigurationException, match=r"no labels, or no finite loss, for \['kind'\]"):
        trainer.fit(make_table_module(balancer=CoBa()), loader(), loader(table))


def test_other_modules_are_told_what_is_missing() -> None:
    class Other(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    trainer = make_trainer(callbacks=[ValidationLosses()])
    with pytest.raises(MisconfigurationException, match="Other must have a Balancer as its attribute balancer"):
        trainer.fit(Other(), loader())
