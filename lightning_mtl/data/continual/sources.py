"""Classification data sets, as the material of streams of tasks."""

from __future__ import annotations

import io
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import resolve_root
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.multi_mnist import read_idx
from lightning_mtl.data.samplers import mix_seed


class LabelledDataset(Dataset[tuple[Any, int]]):
    """A map-style data set together with the class of every sample, which is known without reading the sample.

    Args:
        dataset: Yields ``(input, label)``, or is a tensor of inputs with the samples in the first dimension. Bytes are
            divided by 255.
        labels: ``(n,)`` classes.
        domains: ``(n,)`` domain of every sample, for data sets that come from several.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> data = LabelledDataset(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([3, 1]))
        >>> len(data), data[0][0].mean(), data[0][1]
        (2, tensor(1.), 3)
    """

    def __init__(self, dataset: Dataset[Any] | Tensor, labels: Tensor, domains: Tensor | None = None) -> None:
        length = len(cast(Sized, dataset))
        for name, values in (("labels", labels), ("domains", domains)):
            if values is not None and len(values) != length:
                raise ValueError(f"LabelledDataset: {name} must have {length} entries, got {len(values)}.")
        self.dataset = dataset
        self.labels = labels.long()
        self.domains = None if domains is None else domains.long()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an input and its class."""
        found = self.dataset[index]
        value = found if isinstance(found, Tensor) else found[0]
        if isinstance(value, Tensor) and value.dtype == torch.uint8:
            value = value.float() / 255
        return value, int(self.labels[index])


class ClassificationSource(ABC):
    """A classification data set with a training and a test part."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def groups(self) -> list[list[int]] | None:
        """Classes that belong together, as tasks; None where the data set has no such groups."""
        return None

    @abstractmethod
    def read(self, train: bool) -> LabelledDataset:
        """Return a part of the data set.

        Args:
            train: Whether to return the training part, else the test part.
        """


class DatasetSource(ClassificationSource):
    """Any two map-style data sets of ``(input, label)``, for example those of torchvision.

    Args:
        train: Training data set.
        test: Test data set.
        num_classes: Number of classes; None takes one more than the largest label.

    Raises:
        ValueError: If a label is no class.

    Note:
        Labels are taken from the attribute ``targets`` or ``labels`` where the data set has one, otherwise by reading
        every sample once. Domains are taken from the attribute ``domains``.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> rows = TensorDataset(torch.randn(4, 2), torch.tensor([0, 1, 2, 1]))
        >>> DatasetSource(rows, rows).num_classes
        3
    """

    def __init__(self, train: Dataset[Any], test: Dataset[Any], num_classes: int | None = None) -> None:
        self._parts = {part: _with_labels(dataset) for part, dataset in ((True, train), (False, test))}
        largest = max(int(part.labels.max()) for part in self._parts.values())
        smallest = min(int(part.labels.min()) for part in self._parts.values())
        self._num_classes = largest + 1 if num_classes is None else num_classes
        if smallest < 0 or largest >= self._num_classes:
            raise ValueError(
                f"DatasetSource: labels must be classes 0..{self._num_classes - 1}, got {smallest}..{largest}; map the "
                "labels, or correct num_classes."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    def read(self, train: bool) -> LabelledDataset:
        """Return a part of the data set."""
        return self._parts[train]


def _with_labels(dataset: Dataset[Any]) -> LabelledDataset:
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None:
        labels = [int(dataset[i][1]) for i in range(len(cast(Sized, dataset)))]
    domains = getattr(dataset, "domains", None)
    return LabelledDataset(dataset, torch.as_tensor(labels), None if domains is None else torch.as_tensor(domains))


class _IdxSource(ClassificationSource):
    """Images in four idx files.

    Args:
        root: Folder of the files, packed with gzip or not; None takes the data set's folder below
            ``$LIGHTNING_MTL_DATA``.
    """

    folder: str
    remedy: str

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = root

    @property
    def num_classes(self) -> int:
        """Number of classes, 10."""
        return 10

    def read(self, train: bool) -> LabelledDataset:
        """Return images ``(1, 28, 28)`` in 0..1 and classes.

        Raises:
            DatasetNotFoundError: If a file is missing.
            DataFileError: If a file is damaged.
        """
        name = type(self).__name__
        root = resolve_root(name, self.root, self.folder, self.remedy)
        found: list[Path] = []
        for stem in (f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")):
            here = [path for path in (root / f"{stem}.gz", root / stem) if path.is_file()]
            if not here:
                raise DatasetNotFoundError.of(name, root, [f"{stem}.gz"], self.remedy)
            found.append(here[0])
        images, labels = (read_idx(path) for path in found)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataFileError.of(
                name,
                found[0],
                f"must hold {len(labels)} images ('{found[1].name}'), got shape {tuple(images.shape)}",
                "take both files from the same source",
            )
        return LabelledDataset(images.unsqueeze(1), labels)


class MNIST(_IdxSource):
    """Handwritten digits, ten classes of 28 x 28 grey images.

    Args:
        root: Folder of the four idx files, packed or not; None takes ``$LIGHTNING_MTL_DATA/mnist``.

    References:
        LeCun, Bottou, Bengio, Haffner. *Gradient-Based Learning Applied to Document Recognition*. Proceedings of the
        IEEE 86, 1998. https://doi.org/10.1109/5.726791.
    """

    folder = "mnist"
    remedy = (
        "Download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        "t10k-labels-idx1-ubyte.gz, e.g. from https://ossci-datasets.s3.amazonaws.com/mnist/, into that folder."
    )


class FashionMNIST(_IdxSource):
    """Articles of clothing, ten classes of 28 x 28 grey images.

    Args:
        root: Folder of the four idx files, packed or not; None takes ``$LIGHTNING_MTL_DATA/fashion_mnist``. The number
            of images is that of the files' headers.

    References:
        Xiao, Rasul, Vollgraf. *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms*.
        2017. https://arxiv.org/abs/1708.07747.
    """

    folder = "fashion_mnist"
    remedy = (
        "Download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        "t10k-labels-idx1-ubyte.gz, e.g. from https://github.com/zalandoresearch/fashion-mnist, into that folder."
    )


class Omniglot(ClassificationSource):
    """Handwritten characters of many alphabets; every alphabet is a group of classes, hence a task of its own.

    Args:
        root: Folder with archives ``images_*.zip``, or with the alphabets unpacked, at any depth; None takes
            ``$LIGHTNING_MTL_DATA/omniglot``.
        archives: Names of the archives or folders to read, without ``.zip``.
        size: Side of the images, which are 105 pixels on disk.
        test_drawers: How many of the 20 drawers of each character, the last ones, make the test part.

    Raises:
        ValueError: If a size is out of range.

    References:
        Lake, Salakhutdinov, Tenenbaum. *Human-level concept learning through probabilistic program induction*.
        Science 350, 2015. https://doi.org/10.1126/science.aab3050.
    """

    remedy = (
        "Download images_background_small1.zip and images_background_small2.zip from "
        "https://github.com/brendenlake/omniglot (folder python) into that folder."
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        archives: Sequence[str] = ("images_background_small1", "images_background_small2"),
        size: int = 28,
        test_drawers: int = 5,
    ) -> None:
        if not 1 <= size <= 105:
            raise ValueError(f"Omniglot: size must be 1 to 105, got {size}.")
        if not 1 <= test_drawers <= 19:
            raise ValueError(f"Omniglot: test_drawers must be 1 to 19, got {test_drawers}.")
        self.root = root
        self.archives = tuple(archives)
        self.size = size
        self.test_drawers = test_drawers
        self._read: tuple[Tensor, Tensor, Tensor, list[list[int]]] | None = None

    @property
    def num_classes(self) -> int:
        """Number of characters."""
        return sum(len(group) for group in self.groups)

    @property
    def groups(self) -> list[list[int]]:
        """The characters of every alphabet, alphabets in the order of their names."""
        return self._all()[3]

    def read(self, train: bool) -> LabelledDataset:
        """Return images ``(1, size, size)``, ink 1 on ground 0, characters, and alphabets as domains.

        Raises:
            DatasetNotFoundError: If an archive is missing.
            DataFileError: If it is damaged or holds no characters.
        """
        images, labels, drawers, groups = self._all()
        kept = (drawers <= 20 - self.test_drawers) == train
        alphabet = torch.cat([torch.full((len(group),), number) for number, group in enumerate(groups)])
        return LabelledDataset(images[kept], labels[kept], alphabet[labels[kept]])

    def _all(self) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
        if self._read is None:
            files = self._files()
            characters = sorted({(alphabet, character) for alphabet, character, _, _ in files})
            number = {character: i for i, character in enumerate(characters)}
            groups: dict[str, list[int]] = {}
            for alphabet, character in characters:
                groups.setdefault(alphabet, []).append(number[alphabet, character])
            images = torch.stack([self._decode(data) for _, _, _, data in files])
            labels = torch.tensor([number[alphabet, character] for alphabet, character, _, _ in files])
            drawers = torch.tensor([drawer for _, _, drawer, _ in files])
            self._read = images, labels, drawers, list(groups.values())
        return self._read

    def _files(self) -> list[tuple[str, str, int, bytes]]:
        """Return alphabet, character, drawer and content of every image, sorted."""
        root = resolve_root("Omniglot", self.root, "omniglot", self.remedy)
        found = []
        for archive in self.archives:
            packed = sorted(root.rglob(f"{archive}.zip"))
            unpacked = [path for path in sorted(root.rglob(archive)) if path.is_dir()]
            if packed:
                try:
                    with zipfile.ZipFile(packed[0]) as file:
                        here = [(name, file.read(name)) for name in file.namelist() if name.endswith(".png")]
                except (OSError, zipfile.BadZipFile) as error:
                    raise DataFileError.of(
                        "Omniglot", packed[0], f"must be a readable archive, got {error}", "download it again"
                    ) from error
            elif unpacked:
                here = [(str(path), path.read_bytes()) for path in unpacked[0].rglob("*.png")]
            else:
                raise DatasetNotFoundError.of("Omniglot", root, [f"{archive}.zip"], self.remedy)
            for name, data in here:
                match = re.search(r"([^/\\]+)[/\\](character\d+)[/\\]\d+_(\d+)\.png$", name)
                if match is None:
                    raise DataFileError.of(
                        "Omniglot", name, "must be named ALPHABET/characterNN/XXXX_YY.png", "unpack it unchanged"
                    )
                found.append((match[1], match[2], int(match[3]), data))
        if not found:
            raise DataFileError.of("Omniglot", root, "must hold images, got none", "download the archives again")
        return sorted(found)

    def _decode(self, data: bytes) -> Tensor:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            grey = image.convert("L").resize((self.size, self.size), Image.Resampling.BOX)
        return 255 - torch.from_numpy(np.array(grey)).unsqueeze(0)


class TextureCrops(ClassificationSource):
    """Generated images: noisy crops of random textures, a few textures for every class.

    Every class owns ``textures`` smooth random fields of 1.5 times the side of an image; a sample is a crop of one of
    them at a random place, plus noise. Small networks learn it in seconds and forget it as fast.

    Args:
        num_classes: Number of classes.
        num_train: Training samples of a class.
        num_test: Test samples of a class.
        size: Side of an image.
        textures: Textures of a class.
        noise: Standard deviation of the noise; that of the textures is 1.
        seed: Seed of everything.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> part = TextureCrops(num_classes=2, num_train=3, num_test=1).read(train=True)
        >>> len(part), tuple(part[0][0].shape)
        (6, (1, 8, 8))
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_train: int = 84,
        num_test: int = 36,
        size: int = 8,
        textures: int = 3,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        numbers = {"num_train": num_train, "num_test": num_test, "size": size, "textures": textures}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"TextureCrops: {name} must be at least 1, got {number}.")
        if num_classes < 2:
            raise ValueError(f"TextureCrops: num_classes must be at least 2, got {num_classes}.")
        if noise < 0:
            raise ValueError(f"TextureCrops: noise must not be negative, got {noise}.")
        self._num_classes = num_classes
        self.num_train = num_train
        self.num_test = num_test
        self.size = size
        self.textures = textures
        self.noise = noise
        self.seed = seed

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._num_classes

    def read(self, train: bool) -> LabelledDataset:
        """Return images ``(1, size, size)`` and classes."""
        fields = self._fields()
        count = self.num_train if train else self.num_test
        stream = Generator().manual_seed(mix_seed(self.seed, 1 if train else 2))
        labels = torch.arange(self._num_classes).repeat_interleave(count)
        total = len(labels)
        kinds = torch.randint(self.textures, (total,), generator=stream)
        side = fields.shape[-1]
        corners = torch.randint(side - self.size + 1, (2, total), generator=stream)
        span = torch.arange(self.size)
        rows = (corners[0].unsqueeze(1) + span).unsqueeze(2)
        columns = (corners[1].unsqueeze(1) + span).unsqueeze(1)
        crops = fields[labels[:, None, None], kinds[:, None, None], rows, columns]
        noise = torch.randn(crops.shape, generator=stream)
        return LabelledDataset((crops + self.noise * noise).unsqueeze(1), labels)

    def _fields(self) -> Tensor:
        side = self.size + max(self.size // 2, 1)
        stream = Generator().manual_seed(mix_seed(self.seed, 0))
        fields = torch.randn(self._num_classes * self.textures, 1, side, side, generator=stream)
        kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
        for _ in range(2):
            fields = F.pad(fields, (1, 1, 1, 1), mode="circular")
            fields = F.conv2d(fields, (kernel[:, None] * kernel).view(1, 1, 3, 3))
        fields = (fields - fields.mean((2, 3), keepdim=True)) / fields.std((2, 3), keepdim=True)
        return fields.view(self._num_classes, self.textures, side, side)
