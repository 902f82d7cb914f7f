"""Darkened photographs have the statistics of a camera with less light."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Generator, Tensor

from lightning_mtl.data import LowLight, Normalize, NYUv2DataModule, SyntheticScenes, SyntheticScenesDataModule
from lightning_mtl.data.low_light import linear_to_srgb, srgb_to_linear
from tests.data.cases import DENSE
from tests.data.trees import write_png_tree

NOISELESS: dict[str, Any] = {"full_well": None, "bits": None}


def grey(light: float, size: int = 200) -> Tensor:
    """A photograph of an even surface that sends this much light."""
    return linear_to_srgb(torch.full((3, size, size), light, dtype=torch.float64))


def seen(transform: LowLight, image: Tensor, seed: int = 0) -> Tensor:
    """Linear light of the darkened image."""
    return srgb_to_linear(transform.darkened(image, Generator().manual_seed(seed)))


def test_the_two_transfer_curves_are_those_of_the_standard_and_inverse() -> None:
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)
    # values of IEC 61966-2-1: the line through zero, and the power law at one half
    expected = torch.tensor([0.04045 / 12.92, ((0.5 + 0.055) / 1.055) ** 2.4, 1.0])
    torch.testing.assert_close(srgb_to_linear(torch.tensor([0.04045, 0.5, 1.0])), expected)


@pytest.mark.parametrize("exposure", [0.02, 0.3, 1.0])
def test_the_mean_of_the_light_is_the_exposure(exposure: float) -> None:
    light = seen(LowLight((exposure, exposure), bits=None), grey(0.5))
    spread = math.sqrt((exposure * 0.5 / 5000 + (3 / 5000) ** 2) / light.numel())
    assert abs(light.mean() - exposure * 0.5) < 5 * spread


@pytest.mark.parametrize(("full_well", "read_noise"), [(500.0, 0.0), (5000.0, 20.0), (2000.0, 5.0)])
def test_the_variance_of_the_light_is_shot_and_read_noise(full_well: float, read_noise: float) -> None:
    transform = LowLight((0.2, 0.2), full_well=full_well, read_noise=read_noise, bits=None)
    light = seen(transform, grey(0.5))
    expected = 0.1 / full_well + (read_noise / full_well) ** 2
    # of n normal values the variance has the relative deviation sqrt(2 / n)
    assert abs(light.var() / expected - 1) < 5 * math.sqrt(2 / light.numel())


def test_read_noise_alone_remains_in_the_dark_and_is_clipped_at_black() -> None:
    light = seen(LowLight((1.0, 1.0), full_well=100.0, read_noise=2.0, bits=None), torch.zeros(3, 100, 100).double())
    assert (light == 0).double().mean() == pytest.approx(0.5, abs=0.02)
    assert light[light > 0].square().mean().sqrt() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_the_light_has_as_many_levels_as_the_bits_say(bits: int) -> None:
    ramp = linear_to_srgb(torch.linspace(0, 1, 100_000, dtype=torch.float64)).expand(3, 1, -1)
    light = seen(LowLight((1.0, 1.0), full_well=None, bits=bits), ramp)
    levels = light.mul(2**bits - 1)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert len(levels.round().unique()) == 2**bits


def test_every_stop_of_the_exposure_is_equally_likely() -> None:
    transform = LowLight((1 / 64, 1.0), **NOISELESS)
    stops = torch.stack([seen(transform, grey(0.5, 1), seed).mean() for seed in range(600)]).mul(2).log2().neg()
    assert 0 <= stops.min() < 0.1
    assert 5.9 < stops.max() <= 6.0001
    assert abs(stops.mean() - 3) < 5 * 6 / math.sqrt(12 * 600)


def test_the_ramp_goes_from_corner_to_corner_and_keeps_the_mean() -> None:
    directions = []
    for seed in range(8):
        light = seen(LowLight((0.25, 0.25), ramp=0.8, **NOISELESS), grey(0.5, 33), seed)[0] / 0.125
        assert light.mean() == pytest.approx(1.0, abs=1e-6)
        corners = light[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() == pytest.approx(0.2, abs=1e-6)
        assert corners.max() == pytest.approx(1.8, abs=1e-6)
        across, down = light.diff(dim=1), light.diff(dim=0)
        assert across.std() < 1e-6  # a plane
        assert down.std() < 1e-6
        directions.append(math.atan2(down.mean(), across.mean()))
    assert len({round(angle, 3) for angle in directions}) == 8


def test_no_darkening_gives_the_very_photograph_back() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    assert LowLight((1.0, 1.0), **NOISELESS).darkened(image, Generator()).equal(image)


def test_targets_are_left_alone_and_the_stream_decides() -> None:
    maps = SyntheticScenes(1, tasks=DENSE, size=(24, 30))._render(0)
    transform = LowLight(ramp=0.5)
    first = transform(maps, Generator().manual_seed(1))
    assert all(first[key] is maps[key] for key in maps if key != "image")
    assert first["image"].dtype == torch.uint8
    assert first["image"].float().mean() < 0.5 * maps["image"].float().mean()
    assert not first["image"].equal(transform(maps, Generator().manual_seed(2))["image"])


def test_training_images_get_new_noise_every_epoch_and_the_others_never() -> None:
    data = SyntheticScenesDataModule(
        tasks=["segmentation"], size=(16, 16), num_train=4, num_val=4, batch_size=4, low_light=LowLight((0.1, 0.1))
    )
    data.setup("fit")
    for loader, same in ((data.train_dataloader(), False), (data.val_dataloader(), True)):
        images = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batch, targets = next(iter(loader))
            order = targets["segmentation"].flatten(1).sum(1).argsort()  # the scenes differ in it
            images.append(batch[order])
        assert images[0].equal(images[1]) == same


def test_a_data_set_on_disk_is_darkened_after_its_augmentation(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path / "nyuv2")
    plain, dark = (
        NYUv2DataModule(root, augment=False, num_workers=0, low_light=low_light)
        for low_light in (None, LowLight((0.25, 0.25), **NOISELESS))
    )
    for data in (plain, dark):
        data.setup()
    for split in ("train", "val", "test"):
        (bright, targets), (image, same) = plain.datasets[split][0], dark.datasets[split][0]
        assert all(targets[task].equal(same[task]) for task in targets)
        normalize = Normalize()
        mean, std = torch.tensor(normalize.mean).view(3, 1, 1), torch.tensor(normalize.std).view(3, 1, 1)
        expected = 0.25 * srgb_to_linear((bright * std + mean).clamp(0, 1))
        found = srgb_to_linear((image * std + mean).clamp(0, 1))
        torch.testing.assert_close(found, expected, rtol=0, atol=0.004)  # one of 255 levels


def test_it_is_written_in_yaml_without_a_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SyntheticScenesDataModule, "data")
    config = parser.parse_string("data: {low_light: {exposure: [0.05, 0.2], ramp: 0.5}, num_train: 4}")
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name before jsonargparse 4.49
    assert build(config).data.low_light == LowLight((0.05, 0.2), ramp=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LowLight((0.2, 0.1)), "LowLight: exposure must be two positive numbers in order, got 0.2 and 0.1"),
        (lambda: LowLight((0.0, 0.1)), "exposure must be two positive numbers"),
        (lambda: LowLight(ramp=1.5), r"LowLight: ramp must be in \[0, 1\], got 1.5"),
        (lambda: LowLight(full_well=0.0), "LowLight: full_well must be positive, or None for no noise, got 0.0"),
        (lambda: LowLight(read_noise=-1.0), "LowLight: read_noise must not be negative, got -1.0"),
        (lambda: LowLight(bits=0), "LowLight: bits must be in 1..16, or None for no quantization, got 0"),
        (lambda: seen(LowLight(), torch.full((3, 2, 2), -2.0)), "image must be uint8, .* darken before normalising"),
        (lambda: seen(LowLight(), torch.ones(3, 2, 2, dtype=torch.int64)), "image must be uint8, .* got torch.int64"),
    ],
    ids=["order", "zero", "ramp", "full-well", "read-noise", "bits", "normalised", "integers"],
)
def test_what_is_no_camera_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
