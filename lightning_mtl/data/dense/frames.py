"""Frames of a data set on disk: their names, their files, and which are set aside."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import torch
from torch import Generator

from lightning_mtl.data.errors import DatasetNotFoundError
from lightning_mtl.data.samplers import mix_seed

Place = tuple[str, str]
"""A folder below the root, and what follows the name of a frame in the name of its file."""


@dataclass(frozen=True)
class FrameFiles(Sequence[dict[str, Path]]):
    """The files of every frame, put together when asked for: a frame costs the memory of its name.

    Attributes:
        root: Folder of the data set.
        names: Names of the frames; may contain folders.
        places: Key of the sample -> where its files are.
        exceptions: ``(key, name)`` -> place of the files that are elsewhere.

    Example:
        >>> frames = FrameFiles(Path("/data"), ("a", "b"), {"image": ("rgb", ".png")})
        >>> frames[1]["image"].as_posix()
        '/data/rgb/b.png'
    """

    root: Path
    names: tuple[str, ...]
    places: Mapping[str, Place]
    exceptions: Mapping[tuple[str, str], Place] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> dict[str, Path]: ...

    @overload
    def __getitem__(self, index: slice) -> FrameFiles: ...

    def __getitem__(self, index: int | slice) -> dict[str, Path] | FrameFiles:
        """Return the files of a frame, or some of the frames."""
        if isinstance(index, slice):
            return FrameFiles(self.root, self.names[index], self.places, self.exceptions)
        name = self.names[index]
        files = {}
        for key, place in self.places.items():
            folder, ending = self.exceptions.get((key, name), place)
            files[key] = self.root / folder / f"{name}{ending}"
        return files

    def __iter__(self) -> Iterator[dict[str, Path]]:
        """Yield the files of one frame after the other."""
        return (self[index] for index in range(len(self)))

    def select(self, chosen: Sequence[bool]) -> FrameFiles:
        """Return the frames that are chosen."""
        names = tuple(name for name, keep in zip(self.names, chosen, strict=True) if keep)
        return FrameFiles(self.root, names, self.places, self.exceptions)


def find_files(
    owner: str,
    root: Path,
    names: Sequence[str],
    places: Mapping[str, Sequence[Place]],
    remedy: str,
    skip: bool = False,
) -> FrameFiles:
    """Find the files of frames; every folder is listed once, no file is opened.

    Args:
        owner: Name of the class that looks for them.
        root: Folder of the data set.
        names: Names of the frames.
        places: Key of the sample -> where its files may be; the first place that has a file counts.
        remedy: How to get the data set.
        skip: Whether frames that lack a file are left out.

    Raises:
        DatasetNotFoundError: If files are missing; it names them. With ``skip``, if no frame is left.
    """
    listed: dict[str, set[str]] = {}

    def exists(folder: str, name: str) -> bool:
        parent, _, base = f"{folder}/{name}".rpartition("/")
        if parent not in listed:
            place = root / parent
            listed[parent] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        return base in listed[parent]

    exceptions: dict[tuple[str, str], Place] = {}
    missing = []
    lacking = set()
    for name in names:
        for key, candidates in places.items():
            found = next(((folder, end) for folder, end in candidates if exists(folder, name + end)), None)
            if found is None:
                missing.append(f"{candidates[0][0]}/{name}{candidates[0][1]}")
                lacking.add(name)
            elif found != candidates[0]:
                exceptions[key, name] = found
    if missing and not (skip and len(lacking) < len(names)):
        raise DatasetNotFoundError.of(owner, root, missing, remedy)
    complete = tuple(name for name in names if name not in lacking)
    return FrameFiles(root, complete, {key: candidates[0] for key, candidates in places.items()}, exceptions)


def read_list(owner: str, root: Path, name: str, remedy: str) -> list[str]:
    """Return the lines of a list of frames, without empty ones.

    Raises:
        DatasetNotFoundError: If there is no such file.
    """
    path = root / name
    if not path.is_file():
        raise DatasetNotFoundError.of(owner, root, [name], remedy)
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def frames_in(root: Path, folder: str, endings: Sequence[str]) -> list[str]:
    """Return the names of the frames in a folder, numbers in their order; empty where there is no such folder."""
    place = root / folder
    found = sorted(place.iterdir()) if place.is_dir() else []
    names = {path.name[: -len(end)] for path in found for end in endings if path.name.endswith(end)}
    return sorted(names, key=lambda name: (len(name) if name.isdigit() else 0, name))


def hold_out(length: int, fraction: float, seed: int, run: int) -> list[bool]:
    """Choose a fraction of neighbouring frames, in whole runs of them.

    Args:
        length: Number of frames.
        fraction: Part of them to choose; at least one run is.
        seed: Seed of the choice.
        run: Frames per run, fewer where the data set is small.
    """
    run = max(1, min(run, length // 4))
    runs = math.ceil(length / run)
    order = torch.randperm(runs, generator=Generator().manual_seed(mix_seed(seed)))
    chosen = set(order[: max(1, round(fraction * runs))].tolist())
    return [i // run in chosen for i in range(length)]
