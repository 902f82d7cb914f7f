"""Distillation between widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_mtl.losses import ci_kd_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "slimmable.json").read_text())["cases"]


def test_slice_mode_gives_the_golden_value() -> None:
    case = next(case for case in GOLDEN if case["args"]["fn"] == "ci_kd_loss")
    parent, child = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("parent", "child"))
    assert ci_kd_loss(parent, child).item() == pytest.approx(case["expected"], rel=1e-5)


def test_gram_mode_is_the_squared_difference_of_cosine_similarities() -> None:
    parent, child = torch.randn(5, 8).double(), torch.randn(5, 3).double()
    wide = torch.nn.functional.cosine_similarity(parent[:, None], parent[None], dim=2)
    narrow = torch.nn.functional.cosine_similarity(child[:, None], child[None], dim=2)
    torch.testing.assert_close(ci_kd_loss(parent, child, "gram"), (wide - narrow).square().mean())
    rotation = torch.linalg.qr(torch.randn(8, 8).double())[0]
    assert ci_kd_loss(parent, parent @ rotation, "gram").item() < 1e-20


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["slice", "gram"])
def test_equal_features_have_no_loss_and_the_parent_gets_no_gradient(mode: str, normalize: bool) -> None:
    parent = torch.randn(4, 6, 2, 2, requires_grad=True)
    child = torch.randn(4, 6, 2, 2, requires_grad=True)
    kind = "slice" if mode == "slice" else "gram"
    ci_kd_loss(parent, child, kind, normalize).backward()
    assert parent.grad is None
    assert child.grad is not None
    assert bool(child.grad.abs().sum() > 0)
    assert ci_kd_loss(parent, parent, kind, normalize).item() == pytest.approx(0, abs=1e-10)


def test_a_child_that_is_wider_than_its_parent_raises() -> None:
    with pytest.raises(ValueError, match=r"as many channels or fewer, got \(2, 4\) for \(2, 3\)"):
        ci_kd_loss(torch.ones(2, 3), torch.ones(2, 4))
