"""Parameters and multiplications of every architecture beside hard sharing, as a Markdown table.

    python benchmarks/architectures.py [--model resnet18] [--size 96 128] [--tasks 3]

Counts a forward pass of one image in evaluation through the encoder with its architecture, without the heads, which are
the same for all. FLOPs are those of torch.utils.flop_counter (convolutions and matrix products, two per
multiplication). TaskExpert, PADNet and MTINet hand on one map of 64 channels instead of four maps, so that their heads
are lighter; the initial predictions of the last two are counted, with one channel a task.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_mtl.nn import (
    CGC,
    MTAN,
    NDDRCNN,
    PLE,
    ConvExpert,
    CrossStitch,
    DSelectK,
    FeatureSpec,
    LearningToBranch,
    MMoE,
    MTINet,
    PADNet,
    TaskExpert,
    TaskTree,
    TimmEncoder,
)


def expert(spec: FeatureSpec) -> nn.Module:
    """Return the expert of the table: a 3 x 3 convolution on every map, as wide as the map."""
    return ConvExpert(spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a convolutional model of timm")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--tasks", type=int, default=3)
    arguments = parser.parse_args()
    tasks = [f"task{i}" for i in range(arguments.tasks)]
    tree = [[0] * len(tasks), [0] * len(tasks), [0] * len(tasks), list(range(len(tasks)))]

    def trunk() -> TimmEncoder:
        return TimmEncoder(arguments.model, "maps", out_indices=(1, 2, 3, 4))

    builds: dict[str, Callable[[], nn.Module]] = {
        "hard sharing": trunk,
        "`CrossStitch`": lambda: CrossStitch(trunk(), tasks),
        "`NDDRCNN`": lambda: NDDRCNN(trunk(), tasks),
        "`MTAN`": lambda: MTAN(trunk(), tasks),
        "`LearningToBranch` (search, evaluated)": lambda: LearningToBranch(trunk(), tasks),
        "`TaskTree`, parting at the last stage": lambda: TaskTree(trunk(), tasks, tree),
        "`MMoE`, 4 experts": lambda: MMoE(trunk(), tasks, 4, expert),
        "`DSelectK`, 4 experts": lambda: DSelectK(trunk(), tasks, 4, 2, expert),
        "`CGC`, 2 shared + 1 per task": lambda: CGC(trunk(), tasks, 2, 1, expert),
        "`PLE`, 2 layers of these": lambda: PLE(trunk(), tasks, 2, 2, 1, expert),
        "`TaskExpert`, 5 experts": lambda: TaskExpert(trunk(), tasks, resize="bilinear"),
        "`PADNet`, 64 channels": lambda: PADNet(trunk(), dict.fromkeys(tasks, 1)),
        "`MTINet`, 64 channels": lambda: MTINet(trunk(), dict.fromkeys(tasks, 1)),
    }
    image = torch.randn(1, 3, *arguments.size)
    print("| architecture | parameters | x | GFLOPs | x |\n|---|---|---|---|---|")
    first: tuple[int, int] | None = None
    for name, build in builds.items():
        encoder = build().eval()
        parameters = sum(p.numel() for p in encoder.parameters())
        with FlopCounterMode(display=False) as counter:
            encoder(image)
        flops = counter.get_total_flops()
        first = first or (parameters, flops)
        print(
            f"| {name} | {parameters / 1e6:.2f} M | {parameters / first[0]:.2f} "
            f"| {flops / 1e9:.2f} | {flops / first[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
