"""Classification and ordinal tasks: what is special."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mtl.nn import FeatureSpec
from lightning_mtl.tasks import BinaryClassification, MulticlassClassification, OrdinalClassification


def kappa(prediction: np.ndarray, target: np.ndarray, k: int) -> float:
    """Cohen's kappa with quadratic weights, by its definition."""
    observed = sum((p - t) ** 2 for p, t in zip(prediction, target, strict=True)) / len(target)
    expected = sum((p - t) ** 2 for p in prediction for t in target) / len(target) ** 2
    return float(1 - observed / expected)


def test_qwk_is_cohens_kappa_with_quadratic_weights_over_all_batches() -> None:
    task = OrdinalClassification(5, "corn")
    predictions, targets = [], []
    for _ in range(3):
        logits, target = torch.randn(20, 4), torch.randint(5, (20,))
        target[::4] = -100
        task.update_metrics(logits, target)
        predictions.append(task.predict(logits)[target >= 0])
        targets.append(target[target >= 0])
    prediction, target = torch.cat(predictions).numpy(), torch.cat(targets).numpy()
    values = task.metrics.compute()
    assert values["qwk"].item() == pytest.approx(kappa(prediction, target, 5), abs=1e-6)
    assert values["mae"].item() == pytest.approx(np.abs(prediction - target).mean(), abs=1e-6)


def test_qwk_of_a_single_class_is_undefined() -> None:
    task = OrdinalClassification(3, "corn")
    task.update_metrics(torch.full((4, 2), -5.0), torch.zeros(4, dtype=torch.int64))
    values = task.metrics.compute()
    assert values["qwk"].isnan()
    assert values["accuracy"] == 1


def test_coral_thresholds_start_with_equally_likely_ranks() -> None:
    task = OrdinalClassification(4, "coral", head=torch.nn.Identity())
    above = task(torch.zeros(1, 1)).sigmoid()
    torch.testing.assert_close(above, torch.tensor([[0.75, 0.5, 0.25]]))


def test_coral_head_has_one_score_and_the_task_k_minus_one_thresholds() -> None:
    task = OrdinalClassification(4, "coral")
    task.build_head(FeatureSpec("vector", (6,)))
    assert {name: tuple(p.shape) for name, p in task.named_parameters()} == {
        "thresholds": (3,),
        "head.layers.0.weight": (1, 6),
        "head.layers.0.bias": (1,),
    }


def test_corn_multiplies_conditional_probabilities() -> None:
    # 0.8, 0.8 * 0.6 = 0.48: only the first question is answered yes, though both conditionals exceed one half.
    logits = torch.tensor([[0.8, 0.6]]).logit()
    assert OrdinalClassification(3, "corn").predict(logits) == 1
    assert OrdinalClassification(3, "coral").predict(logits) == 2


def test_binary_labels_may_be_a_column_floats_or_booleans() -> None:
    task, logits = BinaryClassification(), torch.randn(4, 1)
    target = torch.tensor([1, 0, 1, 1])
    losses = [task.loss(logits, t) for t in (target, target.unsqueeze(1), target.float(), target.bool())]
    assert len({loss.item() for loss in losses}) == 1
    for t in (target, target.unsqueeze(1), target.float(), target.bool()):
        task.update_metrics(logits, t)


def test_per_sample_tasks_pool_maps() -> None:
    task = MulticlassClassification(3)
    task.build_head(FeatureSpec("maps", (4, 8), (4, 8)))
    assert task([torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 4, 4)]).shape == (2, 3)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="OrdinalClassification: kind must be 'coral' or 'corn', got 'probit'"):
        OrdinalClassification(3, "probit")  # type: ignore[arg-type]
