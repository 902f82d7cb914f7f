"""Our loaders against the same ones written by hand with torchvision: NYUv2, or any data set in COCO format.

NYUv2 at 480 x 640: both read the same files, crop, zoom and flip image and three targets jointly, normalise, and
collate. COCO: both read images and boxes, flip, resize, jitter the colours, normalise and collate; by hand this is
``torchvision.datasets.CocoDetection``, wrapped for the transforms v2. They are timed in turns in one process, so that
the ratio does not depend on what else the machine does.

Usage: python benchmarks/dataloading.py --root /datasets/nyuv2 [--frames 24] [--rounds 7] [--num-workers 0]
       python benchmarks/dataloading.py --coco /datasets/bccd [--size 320 320] ...
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from lightning_mtl.data import CocoDetectionDataModule, NYUv2DataModule, PhotometricJitter, RandomHorizontalFlip, Resize


class ByHand(Dataset):
    """What a careful user writes: Pillow, ``tv_tensors`` and the joint transforms of ``torchvision.transforms.v2``."""

    def __init__(self, frames: list[dict[str, Path]]) -> None:
        self.frames = frames
        self.crop = v2.Compose(
            [
                v2.RandomChoice([v2.RandomCrop((480, 640)), v2.RandomCrop((400, 533)), v2.RandomCrop((320, 427))]),
                v2.Resize((480, 640), antialias=True),
            ]
        )
        self.normalize = v2.Compose(
            [
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        files = self.frames[index]
        image = tv_tensors.Image(Image.open(files["image"]).convert("RGB"))
        labels = torch.from_numpy(np.array(Image.open(files["segmentation"])))[None].long() - 1
        depth = torch.from_numpy(np.array(Image.open(files["depth"])).astype(np.float32))[None] / 1000
        normals = torch.from_numpy(np.array(Image.open(files["normals"]).convert("RGB"))).permute(2, 0, 1)
        invalid = (normals == 127).all(0, keepdim=True)
        normals = torch.nn.functional.normalize(normals.float() / 127.5 - 1, dim=0).masked_fill(invalid, 0)
        labels[labels == -1] = 255
        sample = (image, tv_tensors.Mask(labels), tv_tensors.Mask(depth), tv_tensors.Mask(normals))
        image, labels, depth, normals = self.crop(*sample)
        if torch.rand(()) < 0.5:
            image, labels, depth, normals = (v2.functional.horizontal_flip(x) for x in (image, labels, depth, normals))
            normals = normals * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        return self.normalize(image), {"segmentation": labels[0], "depth": depth, "normals": normals}


def list_boxes(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Stack the images, keep the boxes as a list."""
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]


def nyuv2_loaders(options: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """Return our loader of NYUv2 and the one by hand."""
    data = NYUv2DataModule(options.root, layout="png", val_split="test", batch_size=4, num_workers=options.num_workers)
    data.setup("fit")
    dataset = data.datasets["train"]
    dataset.frames = dataset.frames[: options.frames]
    return data.train_dataloader(), by_hand(ByHand(dataset.frames), options)


def coco_loaders(options: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """Return our loader of a data set in COCO format and the one by hand."""
    size = (options.size[0], options.size[1])
    data = CocoDetectionDataModule(
        options.coco,
        size=size,
        resize="stretch",
        augment=[RandomHorizontalFlip(), Resize(size), PhotometricJitter()],
        batch_size=4,
        num_workers=options.num_workers,
    )
    data.setup("fit")
    dataset = data.datasets["train"]
    dataset.images = dataset.images[: options.frames]
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.Resize(size, antialias=True),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    records = dataset.records
    theirs = CocoDetection(records.folder, records.source, transforms=transform)
    wrapped = wrap_dataset_for_transforms_v2(theirs, target_keys=("boxes", "labels", "image_id"))
    return data.train_dataloader(), by_hand(Subset(wrapped, dataset.images.tolist()), options, list_boxes)


def by_hand(dataset: Dataset, options: argparse.Namespace, collate_fn: Callable | None = None) -> DataLoader:
    """Return a plain loader of the same batches."""
    return DataLoader(
        dataset,
        batch_size=4,
        shuffle=True,
        drop_last=True,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        collate_fn=collate_fn,
    )


def seconds(loader: DataLoader) -> float:
    """CPU seconds of this process without workers, wall time with them."""
    clock = time.perf_counter if loader.num_workers else time.process_time
    start = clock()
    for _ in loader:
        pass
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None)
    parser.add_argument("--coco", default=None, help="folder of a data set in COCO format, in place of NYUv2")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num-workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = nyuv2_loaders(options) if options.coco is None else coco_loaders(options)
    for loader in (ours, theirs):
        seconds(loader)  # files into the page cache, workers started
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(options.rounds)]
    ratios = sorted(a / b for a, b in pairs)
    images = 4 * len(ours)
    print(f"cores {os.cpu_count()}, workers {options.num_workers}, {images} frames, {options.rounds} rounds in turns")
    print(f"ours     {images / statistics.median(a for a, _ in pairs):6.1f} images/s")
    print(f"by hand  {images / statistics.median(b for _, b in pairs):6.1f} images/s")
    print(f"time, ours / by hand: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
