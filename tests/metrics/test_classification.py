"""Classification metrics where they are hard to define."""

from __future__ import annotations

import torch

from lightning_mtl.metrics import LabelledMulticlassF1, MeanAUROC


def test_auroc_leaves_out_labels_with_one_class() -> None:
    metric = MeanAUROC(2)
    metric.update(torch.tensor([[0.2, 0.3], [0.7, 0.1]]), torch.tensor([[0, 1], [1, 1]]))
    assert metric.compute() == 1


def test_auroc_is_nan_if_every_label_has_one_class() -> None:
    metric = MeanAUROC(1)
    metric.update(torch.tensor([[0.2], [0.7]]), torch.tensor([[1], [1]]))
    assert metric.compute().isnan()


def test_auroc_of_equal_scores_is_one_half() -> None:
    metric = MeanAUROC(1)
    metric.update(torch.full((6, 1), 0.3), torch.tensor([[1], [0], [0], [1], [1], [0]]))
    assert metric.compute() == 0.5


def test_f1_leaves_out_classes_that_do_not_occur() -> None:
    metric = LabelledMulticlassF1(10)
    metric.update(torch.tensor([3, 3, 5]), torch.tensor([3, 3, 5]))
    assert metric.compute() == 1
