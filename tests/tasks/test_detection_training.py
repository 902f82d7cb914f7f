"""Detection in training: next to a dense task, under every balancer, on two processes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import UPGrad
from lightning_mtl.callbacks import PredictionPanels
from lightning_mtl.data import SyntheticScenesDataModule
from lightning_mtl.tasks import FCOS, Depth, RetinaNet, SemanticSegmentation, Task
from tests.processes import start
from tests.tasks.cases import FCOS_HEAD, RETINANET_HEAD
from tests.tasks.detections import SIZE, TinyMaps, annotation, target
from tests.toys import make_trainer
from tests.trainable import TRAINABLE, build

Batch = tuple[Tensor, dict[str, Any]]


def batch(n: int = 4) -> Batch:
    return torch.randn(n, 3, *SIZE), {"boxes": target(n), "segmentation": torch.randint(4, (n, *SIZE))}


def tasks(kind: str = "FCOS", **options: Any) -> dict[str, Task]:
    boxes = FCOS(3, head=FCOS_HEAD, **options) if kind == "FCOS" else RetinaNet(3, head=RETINANET_HEAD, **options)
    return {"boxes": boxes, "segmentation": SemanticSegmentation(4)}


def make_module(kind: str = "FCOS", **options: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    return MultiTaskModule(TinyMaps(), tasks(kind), **options)


def loader(*batches: Any) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


# cutting the largest and the smallest value of each coordinate needs three tasks
PAIRABLE = [name for name in TRAINABLE if name != "FlatRegions of TrimmedMean, direct"]


@pytest.mark.parametrize("name", PAIRABLE)
def test_every_balancer_trains_boxes_next_to_a_segmentation(name: str) -> None:
    module = make_module(balancer=build(name))
    before = module.encoder.fine.weight.detach().clone()
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, loader(batch(), batch()))
    assert trainer.global_step == 2
    assert not torch.equal(module.encoder.fine.weight, before)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["FCOS", "RetinaNet"])
def test_both_detectors_train_in_bfloat16(kind: str) -> None:
    module = make_module(kind)
    given = batch()
    before = module.task_losses(given)["boxes"].item()
    trainer = make_trainer(max_epochs=5, precision="bf16-mixed", check_val_every_n_epoch=5)
    trainer.fit(module, loader(given), loader(given))
    assert module.task_losses(given)["boxes"].item() < before
    assert trainer.callback_metrics["val/boxes/map"].isfinite()


def test_parts_of_the_loss_are_logged_and_add_up() -> None:
    module = MultiTaskModule(TinyMaps(), tasks(loss_weight=0.5))
    trainer = make_trainer(log_every_n_steps=1, max_steps=1)
    trainer.fit(module, loader(batch()))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    parts = [logged.pop(f"train/boxes/{part}") for part in ("classification", "box", "centerness")]
    assert sum(parts) == pytest.approx(logged["train/boxes/loss"], rel=1e-5)
    assert "train/segmentation/loss" in logged


def test_two_data_sets_give_the_parts_of_the_mean_over_both() -> None:
    module = make_module()
    one, two = batch(3), batch(1)
    both = (torch.cat([one[0], two[0]]), {"boxes": one[1]["boxes"] + two[1]["boxes"]})
    boxes = {name: (images, {"boxes": given["boxes"]}) for name, (images, given) in {"p": one, "q": two}.items()}
    joined, apart = module._losses(both), module._losses(boxes)
    torch.testing.assert_close(apart.losses["boxes"], joined.losses["boxes"])
    torch.testing.assert_close(apart.parts, joined.parts)


def test_gradients_at_a_list_of_maps_are_those_of_both_maps() -> None:
    module = make_module(balancer=UPGrad(at="features"))
    loss = module.training_step(batch())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert module.encoder.coarse.weight.grad.abs().sum() > 0


def test_images_without_annotation_leave_the_other_task_alone() -> None:
    module = make_module()
    images, given = batch()
    losses = module.task_losses((images, given | {"boxes": [None] * 4}))
    assert list(losses) == ["segmentation"]
    module.training_step((images, given | {"boxes": [None] * 4})).backward()
    assert all((p.grad == 0).all() for p in module.tasks["boxes"].parameters())


def test_wrong_boxes_are_refused_with_the_name_of_the_task() -> None:
    images, given = batch(1)
    bad = annotation(1) | {"boxes": torch.tensor([[5.0, 5.0, 5.0, 9.0]])}
    with pytest.raises(ValueError, match=r"task 'boxes': FCOS: target\[0\]\['boxes'\] must hold finite x1 < x2"):
        make_module().task_losses((images, given | {"boxes": [bad]}))


def test_a_checkpoint_rebuilds_the_detector_without_arguments(tmp_path: Path) -> None:
    module = make_module()
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, loader(batch()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MultiTaskModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    images = torch.randn(1, 3, *SIZE)
    for mine, other in zip(module.eval()(images)["boxes"][:3], again.eval()(images)["boxes"][:3], strict=True):
        assert torch.equal(mine, other)
    assert type(again.tasks["boxes"]) is FCOS


def test_synthetic_scenes_are_detected_next_to_depth_and_predicted_per_image() -> None:
    data = SyntheticScenesDataModule(
        tasks=["boxes", "depth"], size=(32, 32), num_train=4, num_val=4, num_test=2, batch_size=4
    )
    names = ["sphere", "box", "cylinder"]
    module = MultiTaskModule(
        TinyMaps(), {"boxes": FCOS(3, names, class_metrics=True, head=FCOS_HEAD), "depth": Depth()}
    )
    trainer = make_trainer()
    trainer.fit(module, data)
    logged = trainer.callback_metrics
    assert {f"val/boxes/{name}" for name in ("map", "map50", "map75", "ap_sphere", "loss")} <= set(logged)
    assert module.higher_is_better()["boxes"]["ap_cylinder"]
    (predicted,) = trainer.predict(module, DataLoader(data.make_dataset("test"), batch_size=2, collate_fn=data.collate))
    assert len(predicted["boxes"]) == 2
    assert predicted["depth"].shape == (2, 1, 32, 32)


def test_panels_draw_boxes_over_the_input_and_other_tasks_as_they_are() -> None:
    class Pictures(pl.loggers.Logger):
        name, version = "pictures", "0"
        taken: Any = None

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

        def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            self.taken = torch.from_numpy(images[0])

    given = (torch.randn(3, 3, *SIZE), {"boxes": target(3), "segmentation": torch.randint(4, (3, *SIZE))})
    module, logger = make_module(), Pictures()
    trainer = make_trainer(callbacks=[PredictionPanels(num_samples=3, mean=None, std=None)], logger=logger)
    trainer.validate(module, loader(given), verbose=False)
    scale, header, gap = 4, 28, 4  # 96 pixels become 384
    high, wide = scale * SIZE[0], scale * SIZE[1]
    assert tuple(logger.taken.shape) == (header + 3 * (high + gap), 5 * (wide + gap), 3)

    def cell(row: int, column: int) -> Tensor:
        top, left = header + row * (high + gap), column * (wide + gap)
        found: Tensor = logger.taken[top : top + high, left : left + wide]
        return found

    image = (255 * given[0][0].clamp(0, 1)).round().byte().movedim(0, -1)
    assert torch.equal(cell(0, 0)[::scale, ::scale], image)
    boxes = module.tasks["boxes"]
    images = cell(0, 0).movedim(-1, 0)[None].contiguous()
    assert torch.equal(cell(0, 1), boxes.draw(images, given[1]["boxes"][:1], scale)[0].movedim(0, -1))
    assert not torch.equal(cell(0, 1), cell(0, 0))
    assert torch.equal(cell(1, 1), cell(1, 0))  # annotated, no objects
    assert (cell(2, 1) == 127).all()  # not annotated
    segmentation = module.tasks["segmentation"].render(given[1]["segmentation"])[0].movedim(0, -1)
    assert torch.equal(cell(0, 3)[::scale, ::scale], segmentation)


def test_two_processes_train_and_evaluate_like_one(tmp_path: Path) -> None:
    worker = functools.partial(start, "tests.tasks.detection_worker")
    runs = worker(str(tmp_path / "one"), world=1) + worker(str(tmp_path / "two"))
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert set(one) == {"FCOS", "RetinaNet", "at features"}
    for name, expected in one.items():
        for found in (first[name], second[name]):
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-7, equal_nan=True, msg=f"{name} {key}")
    assert 0.1 < one["FCOS"]["val/boxes/map"] < 0.9
