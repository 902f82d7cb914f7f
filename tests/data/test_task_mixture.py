from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import Dataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import (
    FixedRatios,
    MultiTaskDataModule,
    SampleIndex,
    TaskConcat,
    TaskMixtureDataModule,
    UniformSampling,
    sample_generator,
)
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.tasks import Regression
from tests.toys import make_trainer


class Numbers(Dataset[Any]):
    """Sample i of a source is (offset + i) and noise from its own stream."""

    def __init__(self, offset: int, length: int, names: tuple[str, ...]) -> None:
        self.offset, self.length, self.names = offset, length, names

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        noise = 0.1 * torch.rand(1, generator=sample_generator(index))
        return self.offset + index + noise, dict.fromkeys(self.names, torch.tensor([float(self.offset)]))


class Source(MultiTaskDataModule):
    def __init__(self, offset: int, length: int, names: tuple[str, ...]) -> None:
        super().__init__(num_workers=0)
        self.arguments = (offset, length, names)
        self.prepared = 0

    def prepare_data(self) -> None:
        self.prepared += 1

    def make_dataset(self, split: str) -> Dataset[Any]:
        offset, length, names = self.arguments
        return Numbers(offset, length if split == "train" else length // 4, names)


def make_data(**options: Any) -> TaskMixtureDataModule:
    sources = {"a": Source(0, 40, ("a", "other")), "b": Source(100, 13, ("its own",))}
    return TaskMixtureDataModule(sources, **{"batch_size": 4, "num_workers": 0, **options})


def make_module() -> MultiTaskModule:
    torch.manual_seed(0)
    return MultiTaskModule(MLPEncoder(1, [4]), {"a": Regression(), "b": Regression()})


def test_the_concatenation_hands_samples_and_their_streams_on() -> None:
    both = TaskConcat({"a": Numbers(0, 3, ("a",)), "b": Numbers(100, 2, ("b",))})
    assert len(both) == 5
    assert both.lengths == {"a": 3, "b": 2}
    inputs, targets = both[SampleIndex(4, seed=7)]
    assert inputs.equal(101 + 0.1 * torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert list(targets) == ["b"]
    assert [int(sample[0]) for sample in both[[0, 3]]] == [0, 100]
    with pytest.raises(IndexError, match="index must be below 5, got 5"):
        both[5]


def test_a_source_gives_the_target_of_its_name_or_its_only_one() -> None:
    data = make_data()
    data.setup("fit")
    names = {name for _, targets in data.train_dataloader() for name in targets}
    assert names == {"a", "b"}
    with pytest.raises(
        ValueError, match=r"task 'c' must have a target of that name or one target alone, got \['a', 'b'"
    ):
        TaskConcat({"c": Numbers(0, 1, ("a", "b"))})[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_unmixed_batches_are_of_one_task(workers: int) -> None:
    data = make_data(num_workers=workers, persistent_workers=False, steps_per_epoch=30, sampling=UniformSampling())
    data.setup("fit")
    counts: Counter[str] = Counter()
    for inputs, targets in data.train_dataloader():
        (task,) = targets
        counts[task] += 1
        assert inputs.shape == (4, 1)
        assert ((inputs >= 100) == (task == "b")).all()
    assert sum(counts.values()) == 30
    assert min(counts.values()) > 5


def test_mixed_batches_have_one_part_a_task_and_train() -> None:
    data = make_data(mixed=True, batch_size=12, sampling=FixedRatios({"a": 1, "b": 1}))
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 53 // 12
    for batch in batches:
        assert set(batch) == {"a", "b"}
        assert sum(len(inputs) for inputs, _ in batch.values()) == 12
    make_trainer(max_epochs=1).fit(make_module(), make_data(mixed=True))


def test_evaluation_goes_through_every_task_once() -> None:
    data = make_data(batch_sizes={"b": 2})
    data.setup()
    found = [(int(inputs.min()), len(inputs), *targets) for inputs, targets in data.val_dataloader()]
    assert found == [(0, 4, "a"), (4, 4, "a"), (8, 2, "a"), (100, 2, "b"), (102, 1, "b")]
    trainer = make_trainer()
    (metrics,) = trainer.test(make_module(), make_data(), verbose=False)
    assert {"test/a/loss", "test/b/loss"} <= set(metrics)
    assert len(trainer.predict(make_module(), make_data())) == 3 + 1


def test_overfitting_on_a_few_samples_works() -> None:
    with pytest.warns(UserWarning, match="requested to overfit"):
        make_trainer(max_epochs=2, overfit_batches=2).fit(make_module(), make_data())


def test_the_ratios_are_those_of_the_epoch_under_way() -> None:
    data = make_data()
    with pytest.raises(RuntimeError, match=r"the training split is not set up; call setup\('fit'\) first"):
        _ = data.task_ratios
    data.setup("fit")
    assert data.task_ratios == pytest.approx({"a": 40 / 53, "b": 13 / 53})
    data.train_dataloader()
    assert data.task_ratios == pytest.approx({"a": 40 / 53, "b": 13 / 53})
    data.prepare_data()
    assert [source.prepared for source in data.sources.values()] == [1, 1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("mixed", [False, True], ids=["unmixed", "mixed"])
def test_a_fit_resumed_anywhere_sees_the_batches_of_an_uninterrupted_one(mixed: bool, tmp_path: Path) -> None:
    class Recorder(MultiTaskModule):
        def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
            parts = batch if isinstance(batch, dict) else {"batch": batch}
            seen.append({name: inputs.flatten().tolist() for name, (inputs, _) in parts.items()})
            return super().training_step(batch, batch_idx)

    def fit(folder: str, ckpt: Path | None = None) -> list[Any]:
        seen.clear()
        save = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        module = Recorder(MLPEncoder(1, [4]), {"a": Regression(), "b": Regression()}, optimizer=sgd)
        trainer = make_trainer(max_epochs=3, callbacks=[save], enable_checkpointing=True)
        trainer.fit(module, make_data(mixed=mixed, steps_per_epoch=5), ckpt_path=ckpt)
        return list(seen)

    def sgd(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1e-8)

    seen: list[Any] = []
    whole = fit("whole")
    assert len(whole) == 15
    for step in (3, 5, 12):
        assert fit(f"{step}", tmp_path / f"whole/step={step}.ckpt") == whole[step:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskMixtureDataModule({}), "sources must hold at least one data module, got none"),
        (lambda: make_data(batch_sizes={"c": 1}), r"batch_sizes must name tasks of \['a', 'b'\], got c"),
        (lambda: make_data(batch_sizes={"b": 1}, mixed=True), "batch_sizes must be left out for mixed batches"),
        (lambda: make_data(batch_size=0), "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"TaskMixtureDataModule: {message}"):
        make()
