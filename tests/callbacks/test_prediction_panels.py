"""What is special about the prediction panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl.callbacks import PredictionPanels
from lightning_mtl.tasks import Regression
from tests.callbacks.scenes import Images, make_loader, make_module
from tests.toys import loader, make_trainer
from tests.toys import make_module as make_vector_module

CELL = (16 * 4, 24 * 4)  # the image enlarged to 96 pixels at least
HEADER, GAP = 28, 4


class Pictures(Logger):
    """A logger that takes images in the way of Weights & Biases."""

    name, version = "pictures", "0"

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, Any, int]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.taken.append((key, images[0], step or 0))


class Board(Pictures):
    """A logger that takes images in the way of TensorBoard."""

    log_image = None  # type: ignore[assignment]

    @property
    def experiment(self) -> Board:
        return self

    def add_image(self, name: str, picture: Tensor, step: int) -> None:
        assert picture.shape[0] == 3
        assert picture.dtype == torch.uint8
        self.taken.append((name, picture.movedim(0, -1).numpy(), step))


def fit(callback: PredictionPanels, logger: Any = False, module: Any = None, val: Any = None, **arguments: Any) -> None:
    trainer = make_trainer(callbacks=[callback], logger=logger, **arguments)
    trainer.fit(module or make_module(), make_loader(), val or make_loader())


def cell(picture: Any, row: int, column: int) -> Any:
    top, left = HEADER + row * (CELL[0] + GAP), column * (CELL[1] + GAP)
    return picture[top : top + CELL[0] : 4, left : left + CELL[1] : 4]


@pytest.mark.parametrize("kind", [Pictures, Board])
def test_picture_goes_to_loggers_that_take_images(kind: type[Pictures]) -> None:
    logger = kind()
    fit(PredictionPanels(num_samples=4, name="val"), logger, max_epochs=2)
    assert [(name, step) for name, _, step in logger.taken] == [("val", 3), ("val", 6)]
    rows, columns = 4, 1 + 2 * 2  # the regression draws nothing
    assert logger.taken[0][1].shape == (HEADER + rows * (CELL[0] + GAP), columns * (CELL[1] + GAP), 3)


def test_cells_are_input_target_and_prediction() -> None:
    logger, module = Pictures(), make_module()
    fit(PredictionPanels(num_samples=2, mean=None, std=None), logger, module)
    picture = logger.taken[0][1]
    task = module.tasks["segmentation"]
    module.eval()
    for i in range(2):
        image, targets = Images()[i]
        expected = (255 * image.clamp(0, 1)).round().to(torch.uint8)
        np.testing.assert_array_equal(cell(picture, i, 0), expected.movedim(0, -1).numpy())
        target = task.render(targets["segmentation"][None])[0]
        np.testing.assert_array_equal(cell(picture, i, 1), target.movedim(0, -1).numpy())
        with torch.no_grad():
            prediction = task.render(task.predict(module(image[None])["segmentation"]))[0]
        np.testing.assert_array_equal(cell(picture, i, 2), prediction.movedim(0, -1).numpy())


def test_inputs_are_drawn_without_their_normalisation() -> None:
    logger = Pictures()
    fit(PredictionPanels(num_samples=1), logger)
    image = Images()[0][0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    image = image + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    expected = (255 * image.clamp(0, 1)).round().to(torch.uint8)
    np.testing.assert_array_equal(cell(logger.taken[0][1], 0, 0), expected.movedim(0, -1).numpy())


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_samples_stay_the_same_when_the_loader_shuffles() -> None:
    logger = Pictures()
    fit(PredictionPanels(num_samples=2), logger, val=make_loader(shuffle=True), max_epochs=3)
    first, *others = [cell(picture, 0, 0) for _, picture, _ in logger.taken]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_every_n_epochs_leaves_epochs_out() -> None:
    logger = Pictures()
    fit(PredictionPanels(num_samples=1, every_n_epochs=2), logger, max_epochs=4)
    assert [step for _, _, step in logger.taken] == [3, 9]


def test_without_a_logger_for_images_files_are_written(tmp_path: Path) -> None:
    fit(PredictionPanels(num_samples=1), default_root_dir=tmp_path)
    (file,) = tmp_path.rglob("*.png")
    assert file == tmp_path / "panels" / "predictions-epoch=0-step=3.png"
    with Image.open(file) as picture:
        assert picture.size == (5 * (CELL[1] + GAP), HEADER + CELL[0] + GAP)


def test_a_text_logger_gets_files_in_its_folder(tmp_path: Path) -> None:
    fit(PredictionPanels(num_samples=1), CSVLogger(tmp_path, "run"))
    assert [file.parent.name for file in tmp_path.rglob("*.png")] == ["panels"]


def test_validate_draws_once() -> None:
    logger = Pictures()
    trainer = make_trainer(callbacks=[PredictionPanels(num_samples=1, every_n_epochs=3)], logger=logger)
    trainer.validate(make_module(), make_loader(), verbose=False)
    assert len(logger.taken) == 1


def test_unsupervised_task_has_a_grey_target() -> None:
    class Unlabelled(Images):
        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
            image, targets = super().__getitem__(index)
            return image, {"edges": targets["edges"]}

    logger = Pictures()
    fit(PredictionPanels(num_samples=1), logger, val=DataLoader(Unlabelled(), batch_size=2))
    assert (cell(logger.taken[0][1], 0, 1) == 127).all()


def test_grey_images_are_drawn() -> None:
    logger = Pictures()
    trainer = make_trainer(callbacks=[PredictionPanels(1, mean=[0.5], std=[0.5])], logger=logger)
    trainer.fit(make_module(channels=1), make_loader(channels=1), make_loader(channels=1))
    channels = cell(logger.taken[0][1], 0, 0)
    np.testing.assert_array_equal(channels[..., 0], channels[..., 2])


def test_sanity_check_draws_nothing() -> None:
    logger = Pictures()
    fit(PredictionPanels(num_samples=1), logger, max_epochs=1, limit_train_batches=1, check_val_every_n_epoch=2)
    assert logger.taken == []


def test_module_without_tasks_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="must have tasks in a ModuleDict 'tasks', got LightningModule"):
        PredictionPanels().setup(make_trainer(), pl.LightningModule(), "fit")


def test_tasks_that_draw_nothing_are_refused() -> None:
    class OnlyMean(Images):
        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
            image, targets = super().__getitem__(index)
            return image, {"mean": targets["mean"]}

    data = DataLoader(OnlyMean(), batch_size=2)
    module = make_module(tasks={"mean": Regression()})
    trainer = make_trainer(callbacks=[PredictionPanels()])
    with pytest.raises(MisconfigurationException, match=r"none of the tasks \['mean'\] draws a picture"):
        trainer.validate(module, data, verbose=False)


def test_inputs_that_are_no_images_are_refused() -> None:
    trainer = make_trainer(callbacks=[PredictionPanels()])
    module = make_vector_module()
    module.tasks["size"].render = lambda value: torch.zeros(len(value), 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(MisconfigurationException, match=r"inputs must be images with 1 or 3 channels, got \(8,\)"):
        trainer.validate(module, loader(), verbose=False)


def test_mean_of_another_number_of_channels_is_refused() -> None:
    trainer = make_trainer(callbacks=[PredictionPanels(mean=[0.5], std=[0.5])])
    with pytest.raises(MisconfigurationException, match="must have 3 numbers for these images, got 1"):
        trainer.validate(make_module(), make_loader(), verbose=False)


def test_batches_of_another_form_are_refused() -> None:
    callback = PredictionPanels()
    callback.setup(make_trainer(), make_module(), "validate")
    with pytest.raises(MisconfigurationException, match=r"must be \(images, \{task: target\}\), got dict"):
        callback.on_validation_batch_start(make_trainer(), make_module(), {"a": 1}, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be positive, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs must be positive, got 0"),
        ({"mean": None}, "mean and std must have one number per channel, or both be None"),
        ({"mean": [0.5]}, "mean and std must have one number per channel, or both be None"),
    ],
    ids=["num_samples", "every_n_epochs", "no mean", "length"],
)
def test_wrong_argument_raises(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictionPanels(**arguments)


def test_tensorboard_shows_the_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(PredictionPanels(num_samples=1), TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    events.Reload()
    assert [event.step for event in events.Images("predictions")] == [3]
