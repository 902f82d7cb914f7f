"""Parameters and multiplications of every architecture beside hard sharing, as a Markdown table.

    python benchmarks/architectures.py [--model resnet18] [--size 96 128] [--tasks 3] [--rounds 0] [--only NAME ...]

Counts a forward pass of one image in evaluation through the encoder with its architecture, without the heads, which are
the same for all. FLOPs are those of torch.utils.flop_counter (convolutions and matrix products, two per
multiplication). TaskExpert, PADNet, MTINet and InvPT hand on one map of 64 channels instead of four maps, so that their
heads are lighter; the initial predictions of the last three are counted, with one channel a task.

With --rounds N the last column is the time of a training pass (forward and backward, 4 images, one thread, all tasks)
as a multiple of hard sharing's: the median over N rounds, in each of which the two take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
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
    InvPT,
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


def seconds(encoder: nn.Module, images: Tensor) -> float:
    """Return the time of a forward and a backward pass, in training."""
    start = time.perf_counter()
    output = encoder(images)
    found = output.values() if isinstance(output, dict) else [output]
    tensors = [t for features in found for t in nested(features)]
    torch.stack([t.square().mean() for t in tensors]).sum().backward()
    return time.perf_counter() - start


def nested(features: object) -> list[Tensor]:
    """Return the tensors of nested features."""
    if isinstance(features, Tensor):
        return [features]
    return [t for member in features for t in nested(member)] if isinstance(features, list | tuple) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="a convolutional model of timm")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0, help="rounds of timing; 0 leaves the times out")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="rows whose name holds one of these, beside hard sharing"
    )
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
        "`InvPT`, 64 channels": lambda: InvPT(trunk(), dict.fromkeys(tasks, 1), downsample=1),
    }
    image = torch.randn(1, 3, *arguments.size)
    images = torch.randn(4, 3, *arguments.size)
    timed = arguments.rounds > 0
    print(
        "| architecture | parameters | x | GFLOPs | x |"
        + " time x |" * timed
        + "\n|---|---|---|---|---|"
        + "---|" * timed
    )
    reference = trunk().train()
    first: tuple[int, int] | None = None
    for name, build in builds.items():
        if first and not any(part in name for part in arguments.only):
            continue
        encoder = build().eval()
        parameters = sum(p.numel() for p in encoder.parameters())
        with FlopCounterMode(display=False) as counter:
            encoder(image)
        flops = counter.get_total_flops()
        first = first or (parameters, flops)
        line = f"| {name} | {parameters / 1e6:.2f} M | {parameters / first[0]:.2f} "
        line += f"| {flops / 1e9:.2f} | {flops / first[1]:.2f} |"
        if timed:
            encoder.train()
            pairs = [(seconds(encoder, images), seconds(reference, images)) for _ in range(arguments.rounds + 1)][1:]
            line += f" {statistics.median(own / plain for own, plain in pairs):.2f} |"
        print(line, flush=True)


if __name__ == "__main__":
    main()
