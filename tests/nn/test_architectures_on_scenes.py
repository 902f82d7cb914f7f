"""Every architecture learns two dense tasks on ray-traced scenes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data.synthetic import SyntheticScenes
from lightning_mtl.nn import (
    CGC,
    MTAN,
    NDDRCNN,
    PLE,
    ConvExpert,
    ConvHead,
    CrossStitch,
    DSelectK,
    FeatureSpec,
    InvPT,
    LearningToBranch,
    MMoE,
    MTINet,
    PADNet,
    TaskExpert,
    TaskTree,
)
from lightning_mtl.tasks import Depth, SemanticSegmentation
from tests.nn.cases import ThreeStages

Batch = tuple[Tensor, dict[str, Tensor]]

TASKS = ("segmentation", "depth")
OUTPUTS = {"segmentation": 6, "depth": 1}


def expert(spec: FeatureSpec) -> nn.Module:
    return ConvExpert(spec)


ARCHITECTURES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hard_sharing": lambda encoder: encoder,
    "cross_stitch": lambda encoder: CrossStitch(encoder, TASKS),
    "nddr_cnn": lambda encoder: NDDRCNN(encoder, TASKS),
    "mtan": lambda encoder: MTAN(encoder, TASKS),
    "learning_to_branch": lambda encoder: LearningToBranch(encoder, TASKS),
    "task_tree": lambda encoder: TaskTree(encoder, TASKS, [[0, 0], [0, 0], [0, 1]]),
    "mmoe": lambda encoder: MMoE(encoder, TASKS, 2, expert),
    "dselect_k": lambda encoder: DSelectK(encoder, TASKS, 2, 1, expert),
    "cgc": lambda encoder: CGC(encoder, TASKS, 1, 1, expert),
    "ple": lambda encoder: PLE(encoder, TASKS, 2, 1, 1, expert),
    "task_expert": lambda encoder: TaskExpert(encoder, TASKS, 12, 2, resize="bilinear"),
    "pad_net": lambda encoder: PADNet(encoder, OUTPUTS, channels=12),
    "mti_net": lambda encoder: MTINet(encoder, OUTPUTS, channels=8),
    "inv_pt": lambda encoder: InvPT(encoder, OUTPUTS, channels=16),
}


@pytest.fixture(scope="module")
def scenes() -> Batch:
    samples = list(SyntheticScenes(64, tasks=TASKS, size=(24, 32)))
    targets = {task: torch.stack([sample[1][task] for sample in samples]) for task in TASKS}
    return torch.stack([sample[0] for sample in samples]), targets


def absolute_error(depth: Tensor, target: Tensor) -> float:
    valid = target > 0
    return float((depth.expand_as(target) - target)[valid].abs().mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_tasks_beat_the_best_constant_on_the_scenes_that_it_learned(name: str, scenes: Batch) -> None:
    images, targets = scenes
    torch.manual_seed(0)
    encoder = ARCHITECTURES[name](ThreeStages(channels=(8, 16, 16)))
    heads = {"segmentation": SemanticSegmentation(6, head=ConvHead), "depth": Depth(head=ConvHead)}
    module = MultiTaskModule(encoder, dict(heads)).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    totals = []
    for step in range(60):
        rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
        optimizer.zero_grad()
        total = module.training_step((images[rows], {task: target[rows] for task, target in targets.items()}))
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-8:]) < 0.7 * sum(totals[:8])

    module.eval()
    with torch.no_grad():
        found = {task: heads[task].predict(prediction) for task, prediction in module(images).items()}
    labels = targets["segmentation"][targets["segmentation"] != 255]
    majority = float(labels.bincount().max() / labels.numel())
    hits = (found["segmentation"] == targets["segmentation"])[targets["segmentation"] != 255]
    assert float(hits.float().mean()) > majority + 0.1
    depth = targets["depth"]
    constant = depth[depth > 0].mean()
    assert absolute_error(found["depth"], depth) < 0.8 * absolute_error(constant, depth)
