"""Dense tasks: what is special."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mtl.nn import ConvHead, FeatureSpec, FPNHead
from lightning_mtl.tasks import Depth, Edges, SemanticSegmentation, SurfaceNormals


def test_miou_is_over_the_data_set_and_leaves_out_classes_that_never_occur() -> None:
    task = SemanticSegmentation(6, class_names=list("abcdef"))
    batches = [(torch.randn(n, 6, 4, 5), torch.randint(4, (n, 4, 5))) for n in (2, 1)]
    for logits, target in batches:
        logits[:, 5] = -100  # class 5 occurs nowhere, class 4 in predictions only
        target[0, 0] = 255
        task.update_metrics(logits, target)
    prediction = torch.cat([p.argmax(1).flatten() for p, _ in batches]).numpy()
    target = torch.cat([t.flatten() for _, t in batches]).numpy()
    prediction, target = prediction[target != 255], target[target != 255]
    iou = [((prediction == c) & (target == c)).sum() / ((prediction == c) | (target == c)).sum() for c in range(5)]
    assert iou[4] == 0
    assert task.metrics.compute()["miou"].item() == pytest.approx(np.mean(iou), abs=1e-6)
    assert task.class_iou() == pytest.approx(dict(zip("abcdef", [*iou, np.nan], strict=True)), nan_ok=True)


def test_segmentation_colours_are_fixed_and_different() -> None:
    colours = SemanticSegmentation(200).render(torch.arange(200).view(1, 10, 20))
    assert len(colours.flatten(2)[0].T.unique(dim=0)) == 200
    assert torch.equal(SemanticSegmentation(13).render(torch.tensor([[[4]]])), colours[:, :, :1, 4:5])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SemanticSegmentation(3, class_names=["a", "b"]),
            r"class_names must be 3 different names, got \['a', 'b'\]",
        ),
        (lambda: SemanticSegmentation(300), r"ignore_index must be outside 0\.\.299, got 255; shift"),
        (lambda: Depth("silog", activation="identity"), "activation must be 'softplus' or 'exp' for loss='silog'"),
        (lambda: Depth("l2"), "loss must be 'l1', 'silog' or 'berhu', got 'l2'"),  # type: ignore[arg-type]
        (lambda: Depth(representation="feet"), "representation must be 'metres' or 'inverse'"),  # type: ignore[arg-type]
        (lambda: Depth(activation="relu"), "activation must be 'identity', 'softplus' or 'exp'"),  # type: ignore[arg-type]
        (lambda: Depth(max_value=0.0), "max_value must be positive, got 0.0"),
        (lambda: Edges(balance=2.0), r"balance must be 'image' or in \(0, 1\), got 2.0"),
    ],
)
def test_wrong_arguments_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("activation", ["softplus", "exp"])
def test_positive_activations_give_positive_finite_depths(activation: str) -> None:
    task = Depth("silog", activation=activation)  # type: ignore[arg-type]
    raw = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4]).view(1, 1, 1, 5)
    depth = task.predict(raw)
    assert (depth >= 0).all()
    assert torch.isfinite(depth).all()
    assert torch.isfinite(task.loss(raw, torch.ones(1, 1, 1, 5)))


def test_scale_invariant_loss_counts_images() -> None:
    target = torch.ones(3, 1, 2, 2)
    target[0] = 0
    target[1, 0, 0, 0] = 0
    assert Depth("silog").num_labelled(target) == 2
    assert Depth("l1").num_labelled(target) == 7


@pytest.mark.parametrize(("representation", "bright"), [("metres", 0), ("inverse", 2)])
def test_near_is_drawn_bright(representation: str, bright: int) -> None:
    picture = Depth(representation=representation).render(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3))  # type: ignore[arg-type]
    assert picture.float().mean(1).flatten().argmax() == bright


def test_fixed_depth_range_makes_pictures_comparable() -> None:
    task = Depth(max_value=10.0)
    near, both = torch.full((1, 1, 1, 1), 2.0), torch.tensor([2.0, 8.0]).view(1, 1, 1, 2)
    assert torch.equal(task.render(near), task.render(both)[..., :1])


def test_flat_ground_facing_up_is_drawn_green() -> None:
    up = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert SurfaceNormals().render(up).flatten().tolist() == [128, 255, 128]


def test_default_dense_head_is_a_pyramid_where_the_strides_allow_it() -> None:
    for strides, head in (
        ((4, 8, 16, 32), FPNHead),
        ((4, 8, 8, 8), ConvHead),
        ((16, 16, 16, 16), ConvHead),
        ((8, 16), ConvHead),
    ):
        task = SurfaceNormals()
        task.build_head(FeatureSpec("maps", (8,) * len(strides), strides))
        assert isinstance(task.head, head)


def test_pyramid_prediction_is_resized_to_the_image() -> None:
    task = SurfaceNormals()
    task.build_head(FeatureSpec("maps", (4, 4, 4, 4), (4, 8, 16, 32)))
    assert task([torch.randn(1, 4, 64 // s, 96 // s) for s in (4, 8, 16, 32)], (64, 96)).shape == (1, 3, 64, 96)


def test_dense_task_on_a_vector_is_refused_with_the_heads_that_fit() -> None:
    with pytest.raises(ValueError, match="features must be of kind 'maps', got 'vector'"):
        Depth().build_head(FeatureSpec("vector", (8,)))
