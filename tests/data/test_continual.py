"""Streams of tasks and memories of them."""

from __future__ import annotations

import collections
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from lightning_mtl.data import (
    MNIST,
    DatasetNotFoundError,
    DatasetSource,
    FashionMNIST,
    LabelledDataset,
    Omniglot,
    PermutedPixels,
    ReplayBuffer,
    ReservoirBuffer,
    RingBuffer,
    Rotation,
    TaskStream,
    TextureCrops,
)
from tests.data.trees import write_mnist
from tests.toys import make_trainer

BUFFERS: dict[str, Callable[..., ReplayBuffer]] = {
    "reservoir": lambda **o: ReservoirBuffer(6, seed=2, **o),
    "ring": lambda **o: RingBuffer(6, num_groups=3, seed=2, **o),
}
buffers = pytest.mark.parametrize("build", BUFFERS.values(), ids=BUFFERS.keys())


def batch(start: int, count: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    numbers = torch.arange(start, start + count)
    return numbers.float().view(-1, 1, 1).expand(-1, 2, 3), {"class": numbers % 3, "flag": numbers > 5}


def fill(buffer: ReplayBuffer, start: int = 0, batches: int = 5) -> None:
    for number in range(start, start + batches):
        buffer.add(batch(4 * number), groups=[number % 3] * 4)


# ---------------------------------------------------------------------- buffers
@buffers
def test_samples_come_back_as_they_went_in(build: Callable[..., ReplayBuffer]) -> None:
    buffer = build()
    fill(buffer)
    images, targets = buffer.items()
    assert len(buffer) == len(images) == 6
    assert images.shape == (6, 2, 3)
    number = images[:, 0, 0].long()
    assert targets["class"].equal(number % 3)
    assert targets["flag"].equal(number > 5)
    assert targets["flag"].dtype == torch.bool


@buffers
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_resumed_buffer_goes_on_as_if_nothing_had_happened(
    build: Callable[..., ReplayBuffer], on_disk: bool, tmp_path: Path
) -> None:
    options = {"folder": tmp_path / "a"} if on_disk else {}
    buffer = build(**options)
    fill(buffer)
    file = tmp_path / "state.pt"
    torch.save(buffer.state_dict(), file)
    fill(buffer, 5)  # goes on and is killed
    expected = buffer.sample(3), buffer.sample(6)
    resumed = build(**options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    fill(resumed, 5)
    found = resumed.sample(3), resumed.sample(6)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert resumed.seen == buffer.seen == 40


def test_buffer_on_disk_holds_what_one_in_memory_holds(tmp_path: Path) -> None:
    one, two = ReservoirBuffer(5), ReservoirBuffer(5, folder=tmp_path / "memory")
    fill(one)
    fill(two)
    torch.testing.assert_close(one.items(), two.items(), rtol=0, atol=0)
    assert sum(path.stat().st_size for path in (tmp_path / "memory").iterdir()) == 5 * (6 * 4 + 8 + 1)


def test_reservoir_follows_vitters_algorithm() -> None:
    buffer = ReservoirBuffer(5, seed=3)
    generator = torch.Generator().manual_seed(3)
    kept: list[int] = []
    for start in range(0, 60, 4):
        buffer.add(torch.arange(start, start + 4))
        drawn = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
        for i, u in zip(range(start, start + 4), drawn, strict=True):
            j = i if i < 5 else int(u * (i + 1))
            if i < 5:
                kept.append(i)
            elif j < 5:
                kept[j] = i
    assert buffer.items().tolist() == kept


def test_reservoir_keeps_every_sample_with_the_same_probability() -> None:
    counts: collections.Counter[int] = collections.Counter()
    for seed in range(800):
        buffer = ReservoirBuffer(4, seed=seed)
        buffer.add(torch.arange(7))
        buffer.add(torch.arange(7, 16))
        counts.update(buffer.items().tolist())
    # 800 draws of probability 1/4: standard deviation 12
    assert all(abs(counts[number] - 200) < 60 for number in range(16))


def test_ring_keeps_the_last_samples_of_every_group() -> None:
    buffer = RingBuffer(6, num_groups=3)
    for number in range(20):
        buffer.add(torch.tensor([number]), groups=[min(number // 7, 1)])
    assert sorted(buffer.items().tolist()) == [5, 6, 18, 19]  # the third group has none


@buffers
def test_draws_are_without_replacement_and_from_a_generator_of_their_own(build: Callable[..., ReplayBuffer]) -> None:
    buffer = build()
    fill(buffer)
    before = torch.get_rng_state()
    drawn = buffer.sample(6)[0][:, 0, 0].tolist()
    assert len(set(drawn)) == 6
    assert len(buffer.sample(100)[0]) == 6
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ReservoirBuffer(0), "ReservoirBuffer: capacity must be at least 1, got 0"),
        (lambda: RingBuffer(3, num_groups=4), "RingBuffer: num_groups must be 1 to the capacity 3, got 4"),
        (lambda: ReservoirBuffer(3).sample(1), "the buffer is empty; add samples"),
        (lambda: RingBuffer(4, 2).add(torch.zeros(1)), "groups must give one of 2 groups per sample, got None"),
        (lambda: RingBuffer(4, 2).add(torch.zeros(1), [2]), r"groups must be 1 numbers in 0\.\.1, got \[2\]; set num"),
        (lambda: ReservoirBuffer(4).add({"x": torch.zeros(3), "n": 3}), r"tensors with the same first.*'int'"),
        (
            lambda: ReservoirBuffer(4).add((torch.zeros(3), torch.zeros(2))),
            r"same first dimension, got lengths \[2, 3\]",
        ),
        (
            lambda: ReservoirBuffer(5).load_state_dict(ReservoirBuffer(4).state_dict()),
            "capacity must be that of the checkpoint, 4, got 5",
        ),
        (
            lambda: RingBuffer(4, 2).load_state_dict(RingBuffer(4, 4).state_dict()),
            "num_groups must be that of the checkpoint, 4, got 2",
        ),
    ],
)
def test_wrong_use_of_a_buffer_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


def test_samples_of_another_shape_are_refused() -> None:
    buffer = ReservoirBuffer(4)
    buffer.add({"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"structure and shapes \[\(\(3,\), torch.float32\)\], got \[\(\(5,\), torch"):
        buffer.add({"x": torch.zeros(2, 5)})


# ---------------------------------------------------------------------- streams
def stream(scheme: str = "class", **options: Any) -> TaskStream:
    options = {"num_tasks": 3, "batch_size": 16, **options}
    source = TextureCrops(num_classes=6, num_train=20, num_test=5)
    if scheme == "domain":
        options.setdefault("shift", PermutedPixels())
    return TaskStream(source, scheme, **options)  # type: ignore[arg-type]


def seen(data: TaskStream, task: int) -> collections.Counter[int]:
    data.set_task(task)
    targets = [targets["class"] for _, targets in data.train_dataloader()]
    return collections.Counter(torch.cat(targets).tolist())


def test_class_incremental_tasks_hold_their_classes_and_no_others() -> None:
    data = stream(class_order=[5, 4, 3, 2, 1, 0])
    data.setup("fit")
    assert data.classes == [[5, 4], [3, 2], [1, 0]]
    for task, classes in enumerate(data.classes):
        assert seen(data, task) == dict.fromkeys(classes, 18)  # a tenth validates
    assert data.num_training_samples == 108


def test_uneven_classes_are_spread_over_the_first_tasks() -> None:
    assert stream(num_tasks=4).classes == [[0, 1], [2, 3], [4], [5]]


def test_task_incremental_targets_are_those_of_the_tasks_own_head() -> None:
    data = stream("task")
    data.setup("fit")
    assert data.tasks == ("task0", "task1", "task2")
    data.set_task(1)
    for _, targets in data.train_dataloader():
        assert (targets["task0"] == -100).all()
        assert (targets["task2"] == -100).all()
        assert set(targets["task1"].tolist()) <= {0, 1}


@pytest.mark.parametrize("scheme", ["class", "task"])
def test_plain_batches_have_the_labels_of_the_data_set(scheme: str) -> None:
    data = stream(scheme, plain=True)
    data.setup("fit")
    data.set_task(2)
    for inputs, labels, *task in data.train_dataloader():
        assert len(inputs) == len(labels)
        assert set(labels.tolist()) <= {4, 5}
        assert all((number == 2).all() for number in task)
        assert len(task) == (scheme == "task")


def test_blurry_tasks_hold_a_share_of_the_others_samples() -> None:
    data = stream("blurry", blur=0.25, val_fraction=0.2)
    data.setup("fit")
    total: collections.Counter[int] = collections.Counter()
    for task, classes in enumerate(data.classes):
        counts = seen(data, task)
        own = sum(counts[label] for label in classes)
        assert own == 24  # three quarters of 2 x 16
        assert sum(counts.values()) == 32
        total += counts
    assert total == dict.fromkeys(range(6), 16)
    assert set(torch.cat([t["class"] for _, t in data.task_dataloaders("val")[0]]).tolist()) == {0, 1}


@pytest.mark.parametrize("shift", [PermutedPixels(), Rotation(180, invert=True)], ids=["permuted", "rotated"])
def test_domain_incremental_tasks_show_all_samples_in_another_way(shift: Any) -> None:
    data = stream("domain", shift=shift, num_tasks=2)
    data.setup("fit")
    dataset = data.datasets["train"]
    half = len(dataset) // 2
    for index in (0, half - 1):
        (first, label), (second, again) = dataset[index], dataset[half + index]
        assert label == again
        assert not first.equal(second)
        assert second.equal(shift(first, 1, 2))


def test_domains_of_a_data_set_are_its_tasks() -> None:
    images = torch.arange(60.0).view(60, 1)
    rows = TensorDataset(images, torch.arange(60) % 3)
    rows.domains = torch.arange(60) % 4  # type: ignore[attr-defined]
    data = TaskStream(DatasetSource(rows, rows), "domain", num_tasks=None, batch_size=4, val_fraction=0.5)
    data.setup("fit")
    assert data.num_tasks == 4
    data.set_task(3)
    assert all((inputs.long() % 4 == 3).all() for inputs, _ in data.train_dataloader())


def test_any_data_set_of_inputs_and_labels_is_a_source() -> None:
    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.tensor([float(index)]), index % 4

    data = TaskStream(DatasetSource(Rows(), Rows()), num_tasks=2, batch_size=2, val_fraction=0.3, plain=True)
    data.setup()
    inputs, labels = next(iter(data.test_dataloader()))
    assert (inputs[:, 0].long() % 4).equal(labels)


class Counter(pl.LightningModule):
    """Notes which labels come in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 6)
        self.trained: list[tuple[int, int]] = []
        self.validated: dict[int, set[int]] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.trained += [(self.current_epoch, label) for label in batch[1].tolist()]
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.setdefault(self.current_epoch, set()).update(batch[1].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("evaluate", "labels"), [("seen", [2, 2, 4, 4, 6, 6]), ("current", [2] * 6), ("all", [6] * 6)], ids=lambda v: str(v)
)
def test_one_fit_goes_through_all_tasks(evaluate: Any, labels: list[int]) -> None:
    module, data = Counter(), stream(epochs_per_task=2, plain=True, evaluate=evaluate)
    trainer = make_trainer(max_epochs=6)
    trainer.fit(module, data)
    assert collections.Counter(module.trained) == {(e, 2 * (e // 2) + i): 18 for e in range(6) for i in range(2)}
    assert [len(found) for found in module.validated.values()] == labels
    assert trainer.global_step == data.num_training_steps() == 6 * 3


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 2}, {"max_steps": 7}])
def test_number_of_steps_is_known_in_advance(options: dict[str, Any]) -> None:
    class Ask(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.steps = data.num_training_steps()

    ask, data = Ask(), stream(plain=True, num_tasks=4)  # tasks of different lengths
    trainer = make_trainer(max_epochs=4, callbacks=[ask], **options)
    trainer.fit(Counter(), data)
    assert ask.steps == trainer.global_step


def test_resumed_in_the_middle_of_a_task_the_stream_goes_on(tmp_path: Path) -> None:
    def fit(ckpt_path: str | None, **options: Any) -> Counter:
        module = Counter()
        trainer = make_trainer(max_epochs=6, **options)
        trainer.fit(module, stream(epochs_per_task=2, plain=True), ckpt_path=ckpt_path)
        return module

    def saver() -> pl.Callback:
        return pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=11, save_top_k=-1)

    whole = fit(None, enable_checkpointing=True, callbacks=[saver()])
    resumed = fit(str(tmp_path / "step=11.ckpt"), enable_checkpointing=True, callbacks=[saver()])
    assert resumed.trained == whole.trained[-len(resumed.trained) :]
    assert len(whole.trained) - len(resumed.trained) == 3 * 36 + 2 * 16
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("epochs", [4, 1000])
def test_trainer_that_does_not_end_with_the_stream_is_refused(epochs: int) -> None:
    with pytest.raises(MisconfigurationException, match="max_epochs must be 3, 3 tasks of 1 epochs, got"):
        make_trainer(max_epochs=epochs).fit(Counter(), stream(plain=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: stream("classes"), "scheme must be one of class, task, domain, blurry, got 'classes'"),
        (lambda: stream(num_tasks=0), "num_tasks must be at least 1, got 0"),
        (lambda: stream(num_tasks=7).setup(), "num_tasks must be at most the number of classes 6, got 7"),
        (lambda: stream(num_tasks=None).setup(), "num_tasks must be given, since TextureCrops has no groups"),
        (lambda: stream("domain", shift=None).setup(), "TextureCrops has no domains; pass shift="),
        (lambda: stream("domain", num_tasks=None).setup(), "num_tasks must be given for scheme 'domain' with a shift"),
        (lambda: stream(shift=Rotation()), "shift must be None for scheme 'class'; set scheme='domain'"),
        (lambda: stream(class_order=[0, 0, 1]).setup(), r"class_order must hold classes 0\.\.5, each at most once"),
        (lambda: stream(val_fraction=0.001).setup(), "task 0 has no samples in split 'val'; raise"),
        (lambda: stream().set_task(3), "task must be 0 to 2, got 3"),
        (
            lambda: DatasetSource(*[TensorDataset(torch.zeros(2), torch.tensor([0, 5]))] * 2, num_classes=3),
            r"got 0\.\.5",
        ),
        (lambda: LabelledDataset(torch.zeros(3), torch.zeros(2)), "labels must have 3 entries, got 2"),
        (lambda: TextureCrops(num_classes=1), "num_classes must be at least 2, got 1"),
        (lambda: Omniglot(size=200), "size must be 1 to 105, got 200"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------------------------------------- data sets
def test_loaders_before_setup_say_so() -> None:
    with pytest.raises(RuntimeError, match="split 'train' is not set up; call setup"):
        stream().train_dataloader()


@pytest.mark.parametrize("source", [MNIST, FashionMNIST], ids=lambda s: s.__name__)
def test_idx_files_are_read(source: type[MNIST], tmp_path: Path) -> None:
    data = source(write_mnist(tmp_path)).read(train=True)
    assert len(data) == 60
    image, label = data[7]
    assert image.shape == (1, 28, 28)
    assert 0 <= image.min() <= image.max() <= 1
    assert label == data.labels[7]


@pytest.mark.parametrize("source", [MNIST, FashionMNIST, Omniglot], ids=lambda s: s.__name__)
def test_missing_files_are_named(source: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=rf"{source.__name__}: data not found in .*missing .*http"):
        source(tmp_path).read(train=True)


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_omniglot_has_a_task_for_every_alphabet(packed: bool, tmp_path: Path) -> None:
    files = {}
    for a, alphabet in enumerate(("Greek", "Latin")):
        for character in range(1, 3 + a):
            for drawer in range(1, 21):
                picture = Image.new("1", (105, 105), 1)
                picture.putpixel((drawer, character), 0)
                data = io.BytesIO()
                picture.save(data, "png")
                files[f"small/{alphabet}/character{character:02d}/0{a}{character}_{drawer:02d}.png"] = data.getvalue()
    if packed:
        with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    source = Omniglot(tmp_path, archives=["small"], size=105, test_drawers=5)
    assert source.groups == [[0, 1], [2, 3, 4]]
    train, test = source.read(True), source.read(False)
    assert (len(train), len(test)) == (75, 25)
    image, label = train[0]
    assert (label, int(image.sum()), image[0, 1, 1]) == (0, 1, 1)
    data = TaskStream(source, "task", num_tasks=None, batch_size=5)
    data.setup("fit")
    assert data.tasks == ("task0", "task1")


def test_real_data_sets_are_read(real_data: Callable[[str], Path]) -> None:
    assert len(MNIST(real_data("mnist")).read(train=False)) == 10000
    fashion = FashionMNIST(real_data("fashion_mnist")).read(train=False)
    assert fashion.labels.unique().tolist() == list(range(10))
    omniglot = Omniglot(real_data("omniglot"), archives=["images_background_small1"])
    assert len(omniglot.groups) == 5
    data = omniglot.read(train=False)
    assert len(data) == 5 * omniglot.num_classes
    assert 0.01 < torch.stack([data[i][0] for i in range(0, 600, 50)]).mean() < 0.3


def test_rotation_by_a_right_angle_is_that_of_torch() -> None:
    image = torch.rand(2, 9, 9)
    torch.testing.assert_close(Rotation(180)(image, 1, 2), image.rot90(1, (1, 2)), atol=1e-5, rtol=0)
