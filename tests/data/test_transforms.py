from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from lightning_mtl.data import Normalize, PhotometricJitter, RandomHorizontalFlip, RandomScaleCrop, Resize
from lightning_mtl.data.dense import close_gaps, label_boundaries
from lightning_mtl.data.dense.transforms import IMAGENET_MEAN, IMAGENET_STD, mirror, window
from lightning_mtl.data.scenes import FIELD_OF_VIEW, Scene, camera_rays, random_scene, render

SIZE = (48, 64)


def scene(seed: int) -> Scene:
    return random_scene(np.random.default_rng(seed))


def mirrored(world: Scene) -> Scene:
    """The same scene seen in a mirror that swaps left and right."""
    flip = torch.tensor([-1.0, 1.0, 1.0])
    walls = world.walls.clone()
    walls[:, 0] *= -1
    wave = world.wave.clone()
    return replace(world, center=world.center * flip, yaw=-world.yaw, walls=walls, light=world.light * flip, wave=wave)


def back_project(depth: Tensor) -> Tensor:
    """Points (3, H, W) of a depth map seen by the scenes' camera."""
    size = (depth.shape[-2], depth.shape[-1])
    return camera_rays(size).reshape(3, *size) * depth


def normals_of_depth(depth: Tensor) -> Tensor:
    """Unit normals of the triangles between points, for pixels that have a right and a lower neighbour."""
    points = back_project(depth)
    right = points[:, :-1, 1:] - points[:, :-1, :-1]
    down = points[:, 1:, :-1] - points[:, :-1, :-1]
    return torch.nn.functional.normalize(torch.linalg.cross(down, right, dim=0), dim=0)


@pytest.mark.parametrize("seed", range(8))
def test_flipping_commutes_with_mirroring_the_world(seed: int) -> None:
    direct = render(mirrored(scene(seed)), SIZE)
    flipped = mirror({key: value for key, value in render(scene(seed), SIZE).items() if key != "surface"})
    same = direct["segmentation"] == flipped["segmentation"]  # rounding may move a silhouette by a pixel
    assert same.float().mean() > 0.999
    assert (direct["depth"] - flipped["depth"])[0][same].abs().median() < 1e-4
    angle = (direct["normals"] * flipped["normals"]).sum(0)[same & (direct["depth"][0] > 0)]
    assert (angle > 0.999).float().mean() > 0.99


@pytest.mark.parametrize("seed", range(8))
def test_normals_agree_with_the_gradient_of_the_depth_after_a_flip(seed: int) -> None:
    maps = render(scene(seed), SIZE)
    out = mirror({"depth": maps["depth"], "normals": maps["normals"]})
    surface = maps["surface"].flip(-1)
    cosine = (normals_of_depth(out["depth"]) * out["normals"][:, :-1, :-1]).sum(0)
    inside = (surface[:-1, :-1] == surface[1:, :-1]) & (surface[:-1, :-1] == surface[:-1, 1:])
    assert cosine[inside & (out["depth"][0, :-1, :-1] > 0)].median() > 0.99
    wrong = (normals_of_depth(out["depth"]) * maps["normals"].flip(-1)[:, :-1, :-1]).sum(0)
    walls = inside & (out["normals"][0, :-1, :-1].abs() > 0.3)
    if walls.sum() > 50:
        assert wrong[walls].median() < cosine[walls].median() - 0.1  # without the change of sign they would disagree


def test_flipping_twice_changes_nothing() -> None:
    maps = render(scene(1), SIZE)
    again = mirror(mirror(maps))
    assert all(maps[key].equal(again[key]) for key in maps if key != "surface")


@pytest.mark.parametrize(("p", "flipped"), [(0.0, False), (1.0, True)])
def test_the_probability_of_a_flip_is_kept_at_its_ends(p: float, flipped: bool) -> None:
    sample = {"image": torch.arange(6, dtype=torch.uint8).reshape(1, 1, 6)}
    out = RandomHorizontalFlip(p)(sample, Generator().manual_seed(0))
    assert out["image"].equal(sample["image"].flip(-1) if flipped else sample["image"])


def test_half_of_the_samples_are_flipped() -> None:
    flip = RandomHorizontalFlip(0.5)
    sample = {"image": torch.tensor([[[0, 1]]])}
    count = sum(int(flip(sample, Generator().manual_seed(i))["image"][0, 0, 0]) for i in range(400))
    assert 160 < count < 240  # four standard deviations


@pytest.mark.parametrize("zoom", [1.25, 2.0, 2.5])
def test_a_central_zoom_keeps_the_lateral_position_of_every_point(zoom: float) -> None:
    maps = render(scene(3), (80, 120))
    height, width = round(80 / zoom), round(120 / zoom)
    box = ((80 - height) // 2, (120 - width) // 2, height, width)
    zoomed = window({"image": maps["image"], "depth": maps["depth"]}, box, (80, 120))
    now = back_project(zoomed["depth"] / zoom)
    # where each pixel of the result was taken from: nearest pixel of the window
    rows = box[0] + ((torch.arange(80) + 0.5) * height / 80).floor().long()
    columns = box[1] + ((torch.arange(120) + 0.5) * width / 120).floor().long()
    before = back_project(maps["depth"])[:, rows[:, None], columns]
    focal = 80 / (2 * math.tan(FIELD_OF_VIEW / 2))
    half_a_pixel = 0.5 * before[2].abs() / focal  # taking the nearest pixel moves a point by at most this much
    assert ((now[:2] - before[:2]).abs() <= half_a_pixel + 1e-5).all()
    assert torch.allclose(now[2] * zoom, before[2])


def test_scale_crop_divides_depth_by_the_zoom_and_keeps_the_rest() -> None:
    maps = {**render(scene(4), SIZE)}
    out = RandomScaleCrop((1.6,))(maps, Generator().manual_seed(0))
    assert all(out[key].shape == maps[key].shape for key in ("image", "segmentation", "depth", "normals"))
    assert set(out["segmentation"].unique().tolist()) <= set(maps["segmentation"].unique().tolist())
    values = torch.cat([maps["depth"].flatten() / 1.6, torch.zeros(1)])
    assert torch.isin(out["depth"].flatten(), values).all()  # no value between two surfaces is invented
    length = out["normals"].norm(dim=0)
    assert ((length - 1).abs() < 1e-5).logical_or(length == 0).all()
    assert (length == 0).equal(out["depth"][0] == 0)


def test_a_zoom_of_one_changes_nothing() -> None:
    maps = render(scene(5), SIZE)
    out = RandomScaleCrop((1.0,))(maps, Generator().manual_seed(0))
    assert all(out[key].equal(maps[key]) for key in maps)


def test_image_and_targets_are_cropped_alike() -> None:
    ramp = torch.arange(48 * 64).reshape(48, 64)
    sample = {
        "image": (ramp % 251).to(torch.uint8).expand(3, -1, -1),
        "depth": ramp[None].float(),
        "segmentation": ramp,
    }
    for seed in range(5):
        out = RandomScaleCrop((1.5,), size=(32, 43))(sample, Generator().manual_seed(seed))  # a crop and no resize
        assert out["image"][0].equal((out["segmentation"] % 251).to(torch.uint8))
        assert torch.allclose(out["depth"][0] * 1.5, out["segmentation"].float())


def test_resizing_keeps_metres_and_labels() -> None:
    maps = render(scene(6), SIZE)
    out = Resize((24, 32))(maps, Generator())
    assert out["image"].shape == (3, 24, 32)
    assert torch.isin(out["depth"], maps["depth"]).all()
    assert out["segmentation"].dtype == maps["segmentation"].dtype


def test_normalize_gives_zero_mean_and_unit_deviation_of_its_own_statistics() -> None:
    image = (255 * torch.tensor(IMAGENET_MEAN))[:, None, None].expand(3, 2, 2)
    assert Normalize().normalized(image).abs().max() < 1e-5
    one_up = image + 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.allclose(Normalize().normalized(one_up), torch.ones(3, 2, 2), atol=1e-5)


def test_jitter_of_zero_changes_nothing_and_of_more_changes_the_image_alone() -> None:
    maps = render(scene(7), SIZE)
    assert PhotometricJitter(0, 0, 0)(maps, Generator().manual_seed(0))["image"].equal(maps["image"])
    out = PhotometricJitter(0.4, 0.4, 0.4)(maps, Generator().manual_seed(0))
    assert not out["image"].equal(maps["image"])
    assert out["depth"] is maps["depth"]


def test_boundaries_are_where_a_neighbour_differs() -> None:
    labels = torch.randint(0, 3, (9, 11), generator=Generator().manual_seed(0))
    labels[2, 3] = labels[5, 5] = 255
    edges = label_boundaries(labels)
    for i in range(9):
        for j in range(11):
            near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            others = [int(labels[a, b]) for a, b in near if 0 <= a < 9 and 0 <= b < 11]
            differs = any(other not in (255, int(labels[i, j])) for other in others)
            assert edges[i, j] == (255 if labels[i, j] == 255 else float(differs))


def test_labels_grow_into_void_by_reach_and_never_over_each_other() -> None:
    labels = torch.full((7, 12), 255, dtype=torch.uint8)
    labels[:, :2], labels[:, 9:] = 1, 4
    grown = close_gaps(labels, 3)
    assert grown[:, :5].eq(1).all()
    assert grown[:, 6:].eq(4).all()
    assert grown[:, 5].eq(255).all()
    assert close_gaps(labels.flip(-1), 4).equal(close_gaps(labels, 4).flip(-1))
    assert close_gaps(labels, 0).equal(labels)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomHorizontalFlip(1.5), r"RandomHorizontalFlip: p must be in \[0, 1\], got 1.5"),
        (lambda: RandomScaleCrop((0.5,)), "RandomScaleCrop: scales must hold factors of at least 1, got"),
        (lambda: RandomScaleCrop(()), "RandomScaleCrop: scales must hold factors of at least 1, got"),
        (lambda: PhotometricJitter(contrast=2.0), r"PhotometricJitter: contrast must be in \[0, 1\], got 2.0"),
    ],
    ids=["flip", "zoom-out", "no-zoom", "jitter"],
)
def test_bad_arguments_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
