"""Images with three factors."""

from __future__ import annotations

import pytest
import torch

from lightning_mtl.data import FactorImagesDataModule
from lightning_mtl.data.base import Split
from lightning_mtl.data.synthetic_factors import factor_registry

TARGET = "inverted-diagonal-count"


def still(name: str, count: int = 40, split: Split = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one data set without noise, and the answers."""
    data = FactorImagesDataModule(num_train_each=count, num_eval_each=count, noise=0.0)
    table = data.images({name: count}, split)
    return table.inputs["image"][:, 0], table.targets["answer"]


def lesions(images: torch.Tensor, area: str) -> torch.Tensor:
    """Pixels that are brighter than the stripes can be, for plain images."""
    return images > 0.36


def test_the_27_data_sets_are_the_grid_of_the_factors() -> None:
    registry = factor_registry()
    assert len(registry) == len(registry.merged()) == 27
    assert registry.values("blurred-horizontal-shape") == {"modality": "blurred", "area": "horizontal", "task": "shape"}


def test_answers_say_what_the_images_show() -> None:
    images, answers = still("plain-vertical-half")
    for image, answer in zip(lesions(images, "vertical"), answers, strict=True):
        rows = image.any(1).nonzero().flatten()
        assert rows.min() // 8 == rows.max() // 8 == answer
    images, answers = still("plain-vertical-count")
    columns = lesions(images, "vertical").any(1)
    assert (columns[:, :8].any(1).long() + columns[:, 8:].any(1).long() == 1 + answers).all()
    images, answers = still("plain-vertical-shape")
    bright = lesions(images, "vertical").flatten(1).sum(1)
    sides = lesions(images, "vertical").any(1)
    number = sides[:, :8].any(1).long() + sides[:, 8:].any(1).long()
    assert (bright == number * torch.where(answers == 1, 5, 8)).all()


@pytest.mark.parametrize("area", ["vertical", "horizontal", "diagonal"])
def test_stripes_have_their_direction_and_period(area: str) -> None:
    images, _ = still(f"plain-{area}-count")
    step = {"vertical": (1, 0), "horizontal": (0, 1), "diagonal": (1, -1)}[area]
    moved = images.roll(step, (1, 2))
    mask = (images > 0.36) | (moved > 0.36)
    mask[:, [0, -1], :] = mask[:, :, [0, -1]] = True
    assert moved[~mask].allclose(images[~mask], atol=1e-5)
    assert images.min() >= -0.3501


def test_inverted_images_are_the_negative_of_plain_ones() -> None:
    torch.manual_seed(0)
    plain, _ = still("plain-vertical-count")
    inverted, _ = still("inverted-vertical-count")
    assert plain.max() > 0.9
    assert inverted.min() < -0.9
    assert inverted.max() <= 0.3501
    blurred, _ = still("blurred-vertical-count")
    sharpness = [images.diff(dim=1).abs().max() / images.std() for images in (blurred, plain)]
    assert sharpness[0] < 0.7 * sharpness[1]


def test_a_target_is_never_trained_on_and_alone_evaluated() -> None:
    sizes = {"all": 20, "related": 12, "unrelated": 8, "without:area": 16, "random:area": 16}
    for condition, size in sizes.items():
        data = FactorImagesDataModule(TARGET, condition, num_train_each=4, num_eval_each=6, batch_size=8)
        data.setup()
        assert TARGET not in data.pool
        assert len(data.pool) == size
        assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [4 * size, 6, 6]
        assert set(data.datasets["test"].inputs["task"].tolist()) == {0}
    assert len(FactorImagesDataModule(TARGET, "all", (1, 2)).pool) == 26


def test_a_smaller_number_of_images_holds_the_first_of_each_data_set() -> None:
    data = FactorImagesDataModule(TARGET, num_train_each=10, num_train=50)
    assert sorted(data.train_counts.values()) == [2] * 10 + [3] * 10
    name = data.pool[0]
    few, many = data.images({name: 2}), data.images({name: 10})
    assert many.inputs["image"][:2].equal(few.inputs["image"])
    other = FactorImagesDataModule(TARGET, "related", num_train_each=10)
    assert other.images({name: 2}).inputs["image"].equal(few.inputs["image"])


@pytest.mark.parametrize("group_by", ["modality", "area", "task"])
def test_answers_are_divided_into_the_tasks_of_a_factor(group_by: str) -> None:
    data = FactorImagesDataModule(num_train_each=4, num_eval_each=2, batch_size=None, group_by=group_by)
    data.setup("fit")
    inputs, targets = next(iter(data.train_dataloader()))
    labelled = torch.stack([targets[task] != -100 for task in data.tasks])
    assert labelled.sum(0).eq(1).all()
    assert labelled.sum(1).tolist() == [36, 36, 36]
    if group_by == "task":
        assert labelled.long().argmax(0).equal(inputs["task"])


def test_wrong_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown data set 'plain'; the known ones are"):
        FactorImagesDataModule("plain")
    with pytest.raises(ValueError, match=r"condition must be 'all'.*got 'rest'"):
        FactorImagesDataModule(TARGET, "rest")
    with pytest.raises(ValueError, match="num_train must be between 1 and 20 data sets times 150 images, got 3001"):
        FactorImagesDataModule(TARGET, num_train=3001)
    with pytest.raises(ValueError, match="noise must not be negative, got -1"):
        FactorImagesDataModule(noise=-1)
    with pytest.raises(ValueError, match="num_train_each and num_eval_each must be positive, got 0 and 400"):
        FactorImagesDataModule(num_train_each=0)
    with pytest.raises(ValueError, match=r"group_by must be one of .*got 'organ'"):
        FactorImagesDataModule(group_by="organ")
    with pytest.raises(ValueError, match=r"counts must be from 1 to 150, got \{'plain-vertical-count': 151\}"):
        FactorImagesDataModule().images({"plain-vertical-count": 151})
