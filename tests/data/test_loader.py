from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset, RandomSampler, SequentialSampler

from lightning_mtl.data import MultiTaskDataModule, ResumableDataLoader, SeededSampler, sample_generator


class Noisy(Dataset[Any]):
    """Sample i is i plus noise from its own stream, as augmentation would draw it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.read.append(int(index))
        value = index + 0.5 * torch.rand(1, generator=sample_generator(index))
        return value, {"a": 2 * value}


class NoisyData(MultiTaskDataModule):
    def make_dataset(self, split: str) -> Dataset[Any]:
        return Noisy(23 if split == "train" else 7)


class Recorder(pl.LightningModule):
    """A network that is trained, and the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.seen: list[tuple[int, list[float], float]] = []
        self.validated: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = (self.net(inputs) - targets["a"]).square().mean() * 1e-3
        self.seen.append((self.current_epoch, inputs.flatten().tolist(), loss.item()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += batch[0].flatten().tolist()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return batch[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"enable_checkpointing": bool(callbacks), "num_sanity_val_steps": 0, **options},
    )


@pytest.fixture(autouse=True)
def _worker_warning(recwarn: pytest.WarningsRecorder) -> None:
    """Lightning's advice about the number of workers, for loaders as small as these, is not the subject here."""
    import warnings

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 5, 7, 10], ids=lambda step: f"after-step-{step}")
def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(tmp_path: Path, workers: int, step: int) -> None:
    torch.manual_seed(0)
    start = Recorder().state_dict()

    def fit(steps: int, ckpt: Path | None = None, callbacks: Sequence[pl.Callback] = ()) -> Recorder:
        pl.seed_everything(0 if ckpt is None else 77, verbose=False)
        module = Recorder()
        module.load_state_dict(start)
        data = NoisyData(batch_size=4, num_workers=workers, seed=1)
        trainer(tmp_path, callbacks, max_steps=steps).fit(module, data, ckpt_path=ckpt)
        return module

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
    whole = [(epoch, batch) for epoch, batch, _ in fit(14, callbacks=[save]).seen]
    assert len({tuple(batch) for _, batch in whole}) == 14  # 5 batches an epoch, never twice the same augmentation
    resumed = fit(14, ckpt=tmp_path / f"step={step}.ckpt")
    assert [(epoch, batch) for epoch, batch, _ in resumed.seen] == whole[step:]


@pytest.mark.parametrize("monitor", ["train-end", "validation-end"])
def test_a_fit_resumed_at_the_end_of_an_epoch_begins_the_next(tmp_path: Path, monitor: str) -> None:
    def fit(epochs: int, ckpt: Path | None = None, callbacks: Sequence[pl.Callback] = ()) -> Recorder:
        module = Recorder()
        trainer(tmp_path, callbacks, max_epochs=epochs, limit_train_batches=3).fit(
            module, NoisyData(batch_size=4, num_workers=0), ckpt_path=ckpt
        )
        return module

    on_train_end = monitor == "train-end"
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=on_train_end)
    whole = [batch for _, batch, _ in fit(3, callbacks=[save]).seen]
    resumed = [batch for _, batch, _ in fit(3, ckpt=tmp_path / "epoch=0.ckpt").seen]
    assert resumed == whole[3:]


def test_a_checkpoint_before_a_validation_in_mid_epoch_resumes_exactly(tmp_path: Path) -> None:
    def fit(ckpt: Path | None = None, callbacks: Sequence[pl.Callback] = ()) -> Recorder:
        module = Recorder()
        trainer(tmp_path, callbacks, max_epochs=2, val_check_interval=2).fit(
            module, NoisyData(batch_size=4, num_workers=0), ckpt_path=ckpt
        )
        return module

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = [batch for _, batch, _ in fit(callbacks=[save]).seen]
    resumed = [batch for _, batch, _ in fit(ckpt=tmp_path / "step=2.ckpt").seen]
    assert resumed == whole[2:]


def test_skipped_samples_are_not_read() -> None:
    def loader() -> ResumableDataLoader:
        data = Noisy(40)
        return ResumableDataLoader(data, batch_size=4, sampler=SeededSampler(data))

    first = loader()
    iterator = iter(first)
    batches = [next(iterator)[0] for _ in range(6)]
    second = loader()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [batch[0] for batch in second]
    assert len(second.dataset.read) == 40 - 6 * 4
    whole = [batch[0] for batch in loader()]
    assert all(a.equal(b) for a, b in zip([*batches, *rest], whole, strict=True))


def test_passes_by_hand_differ_and_resume_exactly() -> None:
    def loader() -> ResumableDataLoader:
        data = Noisy(10)
        return ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data))

    first = loader()
    passes = [torch.cat([batch[0] for batch in first]) for _ in range(3)]
    assert not passes[0].equal(passes[1])
    assert not passes[1].equal(passes[2])
    other = loader()
    list(other)
    iterator = iter(other)
    next(iterator)
    resumed = loader()
    resumed.load_state_dict(other.state_dict())
    assert torch.cat([batch[0] for batch in resumed]).equal(passes[1][2:])
    assert torch.cat([batch[0] for batch in resumed]).equal(passes[2])


def test_a_state_of_a_finished_pass_begins_the_next_pass() -> None:
    data = Noisy(6)
    first = ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data))
    list(first)
    state = first.state_dict()
    following = torch.cat([batch[0] for batch in first])
    second = ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data))
    second.load_state_dict(state)
    assert torch.cat([batch[0] for batch in second]).equal(following)


def test_another_epoch_forgets_the_position() -> None:
    data = Noisy(8)
    loader = ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data))
    next(iter(loader))
    loader.sampler.set_epoch(3)
    assert loader.state_dict() == {"epoch": 3, "cycle": 0, "batches": 0}
    assert len(list(loader)) == 4


def test_other_samplers_resume_by_drawing_the_skipped_batches() -> None:
    data = list(range(9))
    loader = ResumableDataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 2, False))
    loader.load_state_dict({"epoch": 0, "cycle": 0, "batches": 3})
    assert [batch.tolist() for batch in loader] == [[6, 7], [8]]


def test_the_global_generator_is_left_alone_without_a_generator_too() -> None:
    data = list(range(9))
    loader = ResumableDataLoader(data, batch_size=3, sampler=RandomSampler(data, generator=torch.Generator()))
    before = torch.get_rng_state()
    list(loader)
    assert torch.get_rng_state().equal(before)


def test_prediction_sees_every_sample_in_order(tmp_path: Path) -> None:
    batches = trainer(tmp_path).predict(Recorder(), NoisyData(batch_size=3, num_workers=0))
    assert torch.cat(batches).flatten().long().tolist() == list(range(7))


def test_overfitting_on_a_few_batches_works(tmp_path: Path) -> None:
    module = Recorder()
    with pytest.warns(UserWarning, match="requested to overfit"):
        trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(module, NoisyData(batch_size=4, num_workers=0))
    assert module.seen[0][1] == module.seen[2][1]


class WriteSeen(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        content = {
            "seen": module.seen,
            "validated": module.validated,
            "sampler": type(trainer.train_dataloader.sampler).__name__,
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(content))


def test_two_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=2).fit(module, NoisyData(batch_size=4, num_workers=0))
    trainer(
        tmp_path, [WriteSeen(tmp_path)], max_epochs=2, devices=2, strategy="ddp_fork", enable_checkpointing=False
    ).fit(Recorder(), NoisyData(batch_size=2, num_workers=0))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert all(rank["sampler"] == "SeededSampler" for rank in ranks)
    for epoch in range(2):
        one = [batch for e, batch, _ in module.seen if e == epoch]
        two = [[batch for e, batch, _ in rank["seen"] if e == epoch] for rank in ranks]
        assert [set(batch) for batch in one] == [{*a, *b} for a, b in zip(*two, strict=True)][: len(one)]
    validated = [value for rank in ranks for value in rank["validated"]]
    assert sorted(validated) == sorted(module.validated)
