"""Faster R-CNN as a task."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import SAM, UPGrad
from lightning_mtl.nn import FasterRCNNHead
from lightning_mtl.tasks import FasterRCNN, SemanticSegmentation
from tests.tasks.cases import FASTER_RCNN_HEAD
from tests.tasks.detections import SIZE, SPEC, TinyMaps, annotation, features, target
from tests.toys import make_trainer

PARTS = ["box", "classification", "objectness", "proposal_box"]


def built(**options: Any) -> FasterRCNN:
    task = FasterRCNN(3, head=FASTER_RCNN_HEAD, **options)
    task.build_head(SPEC)
    return task


class Backbone(nn.Module):
    def __init__(self, encoder: nn.Module, head: Any) -> None:
        super().__init__()
        self.encoder, self.pyramid, self.out_channels = encoder, head.pyramid, 8

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.pyramid(self.encoder(images))))


def torchvisions(encoder: nn.Module, head: Any) -> Any:
    """torchvision's model on these layers."""
    return detection.FasterRCNN(
        Backbone(encoder, head),
        min_size=min(SIZE),
        max_size=max(SIZE),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=head.rpn.anchor_generator,
        rpn_head=head.rpn.head,
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        box_roi_pool=head.roi_heads.box_roi_pool,
        box_head=head.roi_heads.box_head,
        box_predictor=head.roi_heads.box_predictor,
    )


@pytest.mark.parametrize("boxes", [5, 0])
def test_loss_equals_that_of_torchvisions_model_on_the_same_weights_and_draws(boxes: int) -> None:
    encoder, task = TinyMaps(), built()
    model = torchvisions(encoder, task.head).train()
    model.transform.torch_choice = lambda sizes: sizes[0]  # would draw a random number for the one size
    images, given = torch.randn(1, 3, *SIZE), [annotation(boxes)]
    torch.manual_seed(1)
    ours = task.loss_parts(task(encoder(images), SIZE), given)
    torch.manual_seed(1)
    theirs = model(list(images), given)
    names = ("loss_box_reg", "loss_classifier", "loss_objectness", "loss_rpn_box_reg")
    for mine, other in zip(PARTS, names, strict=True):
        torch.testing.assert_close(ours[mine], theirs[other], rtol=1e-5, atol=1e-6)


def test_detections_equal_those_of_torchvisions_model_on_the_same_weights() -> None:
    encoder, task = TinyMaps(), built(score_thresh=0.05, detections_per_img=100)
    for parameter in task.head.roi_heads.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that scores differ
    task.eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        ours = task.predict(task(encoder(images), SIZE))
        theirs = torchvisions(encoder, task.head).eval()(list(images))
    assert len(ours[0]["boxes"]) > 5
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("boxes", "scores", "labels"):
            torch.testing.assert_close(mine[key], other[key])


def test_loss_is_the_sum_of_its_parts_and_reaches_every_parameter() -> None:
    task = built()
    parts = task.loss_parts(task(features(4), SIZE), target(4))
    assert sorted(parts) == PARTS
    sum(parts.values()).backward()
    assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_annotation_loss_and_gradients_are_exactly_zero() -> None:
    task = built()
    prediction = task(features(2), SIZE)
    loss = task.loss(prediction, [None, None])
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in task.parameters())
    task.update_metrics(prediction, [None, None])
    assert all(value.isnan() for value in task.metrics.compute().values())


def test_crowds_are_neither_objects_nor_background() -> None:
    task = built()
    prediction = task(features(1), SIZE)
    whole = torch.tensor([[-1.0, -1.0, SIZE[1] + 1, SIZE[0] + 1]])
    crowd = {"boxes": whole, "labels": torch.tensor([1]), "iscrowd": torch.tensor([True])}
    one = annotation(1)
    both = {key: torch.cat([crowd[key], one[key]]) for key in one} | {"iscrowd": torch.tensor([True, False])}
    chosen, labels, _ = task._sample(prediction.proposals[0], task._check([both], 1)[0])
    assert len(chosen) == 1  # the true box itself; all proposals lie in the crowd
    assert labels.tolist() == one["labels"].tolist()
    assert task.loss(prediction, [both]).isfinite()


def test_half_precision_is_scored_in_float32() -> None:
    task, given = built(), target(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = task(features(4), SIZE)
        loss = task.loss(prediction, given)
        task.update_metrics(prediction, given)
    assert prediction.objectness.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()


@pytest.mark.parametrize("balancer", [UPGrad(at="features"), SAM()], ids=["at features", "SAM"])
def test_it_trains_next_to_a_segmentation_and_is_rebuilt_from_a_checkpoint(balancer: Any, tmp_path: Path) -> None:
    tasks = {"boxes": FasterRCNN(3, head=FASTER_RCNN_HEAD), "segmentation": SemanticSegmentation(4)}
    module = MultiTaskModule(TinyMaps(), tasks, balancer)
    batch = (torch.randn(4, 3, *SIZE), {"boxes": target(4), "segmentation": torch.randint(4, (4, *SIZE))})
    data = torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    trainer = make_trainer(max_epochs=2, log_every_n_steps=1)
    trainer.fit(module, data, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert sum(logged[f"train/boxes/{part}"] for part in PARTS) == pytest.approx(logged["train/boxes/loss"], rel=1e-5)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MultiTaskModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    found = [m.tasks["boxes"].predict(m(batch[0])["boxes"]) for m in (module.eval(), again)]
    for mine, other in zip(*found, strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_second_pass_draws_the_same_samples() -> None:
    module = MultiTaskModule(TinyMaps(), {"boxes": FasterRCNN(3, head=FASTER_RCNN_HEAD)}, SAM(rho=1e-12))
    module.tasks["boxes"].head.rpn.fg_bg_sampler.batch_size_per_image = 8
    batch = (torch.randn(2, 3, *SIZE), {"boxes": [annotation(3), annotation(2)]})
    seen: list[Tensor] = []
    inner = module.tasks["boxes"].loss_parts

    def spy(*arguments: Any) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = inner(*arguments)
        seen.append(torch.stack(list(parts.values())).detach())
        return parts

    module.tasks["boxes"].loss_parts = spy  # type: ignore[method-assign]
    module.training_step(batch).backward()
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])
    module.task_losses(batch)
    assert not torch.allclose(seen[0], seen[2])


def test_wrong_arguments_of_the_head_are_refused() -> None:
    with pytest.raises(ValueError, match="roi_size must be positive, got 0"):
        FasterRCNNHead(SPEC, 3, min_stride=8, roi_size=0)
    with pytest.raises(ValueError, match="aspect_ratios must be positive"):
        FasterRCNNHead(SPEC, 3, min_stride=8, aspect_ratios=[])
