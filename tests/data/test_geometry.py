"""Changing the labels is changing the camera: joint transforms on ray-traced scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from lightning_mtl.data import (
    Compose,
    JointTransform,
    Letterbox,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRescale,
    RandomScaleCrop,
    Resize,
)
from lightning_mtl.data.dense.distance import signed_distance
from lightning_mtl.data.dense.framing import pad
from lightning_mtl.data.dense.transforms import IGNORE_VALUES, mirror, nearer, tilt, window
from lightning_mtl.data.scenes import FIELD_OF_VIEW, random_scene, render

SIZE = (48, 64)


def scene(seed: int, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    """Every kind of target of a random scene."""
    maps = render(random_scene(np.random.default_rng(seed)), size)
    depth = maps["depth"]
    return {
        "image": maps["image"],
        "segmentation": maps["segmentation"],
        "segmentation/surface": maps["surface"].to(torch.uint8),
        "depth": depth,
        "disparity": torch.where(depth > 0, 2 / depth, 0),
        "normals": maps["normals"],
        "edges": (maps["segmentation"] == 2)[None].to(torch.uint8),
        "saliency": (maps["segmentation"] >= 3)[None].to(torch.uint8),
        "regression/two": torch.cat([depth, depth]).masked_fill(torch.cat([depth, depth]) == 0, torch.nan),
    }


def points(depth: Tensor, centre: tuple[float, float], focal: float) -> Tensor:
    """Points (3, H, W), z towards the viewer, of a camera whose principal point is at ``centre`` (row, column)."""
    height, width = depth.shape[-2:]
    y = -(torch.arange(height) + 0.5 - centre[0])[:, None] / focal
    x = (torch.arange(width) + 0.5 - centre[1])[None] / focal
    return torch.stack([x.expand(height, width), y.expand(height, width), -torch.ones(height, width)]) * depth


def gradient_normals(where: Tensor) -> Tensor:
    right = where[:, :-1, 1:] - where[:, :-1, :-1]
    down = where[:, 1:, :-1] - where[:, :-1, :-1]
    return torch.nn.functional.normalize(torch.linalg.cross(down, right, dim=0), dim=0)


def agreement(sample: dict[str, Tensor], centre: tuple[float, float], focal: float) -> Tensor:
    """Cosine of stored normals and those of the depth's gradient, at pixels inside a surface, away from its rims."""
    surface = sample["segmentation/surface"]
    flat = (surface[:-1, :-1] == surface[1:, :-1]) & (surface[:-1, :-1] == surface[:-1, 1:])
    flat &= sample["depth"][0, :-1, :-1] > 0
    cosine = (gradient_normals(points(sample["depth"], centre, focal)) * sample["normals"][:, :-1, :-1]).sum(0)
    return cosine[flat]


def focal_of(height: int) -> float:
    return height / (2 * math.tan(FIELD_OF_VIEW / 2))


def is_unit_or_zero(normals: Tensor) -> bool:
    length = normals.norm(dim=0)
    return bool(((length - 1).abs() < 1e-5).logical_or(length == 0).all())


@given(st.integers(0, 10_000), st.sampled_from([1.25, 1.5, 2.0]), st.booleans(), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_tilted_normals_agree_with_the_gradient_of_the_depth_after_any_zoom_and_flip(
    seed: int, zoom: float, flipped: bool, draw: int
) -> None:
    # A crop that is not resized keeps neighbouring pixels neighbours; the unchanged camera has 1 / zoom as many pixels.
    height, width = 96, 120
    size = (round(height / zoom), round(width / zoom))
    full = scene(seed, (height, width))
    before = agreement(full, (height / 2, width / 2), focal_of(height))
    crop = RandomScaleCrop((zoom,), size=size, tilt_normals=True)
    out = crop(full, Generator().manual_seed(draw))
    draws = Generator().manual_seed(draw)
    _, top, left = (int(torch.randint(n, (), generator=draws)) for n in (1, height - size[0] + 1, width - size[1] + 1))
    centre = (height / 2 - top, width / 2 - left)
    if flipped:
        out = mirror(out)
        centre = (centre[0], size[1] - centre[1])
    after = agreement(out, centre, focal_of(height) / zoom)
    assert is_unit_or_zero(out["normals"])
    if len(after) > 50 and len(before) > 50:
        assert after.median() > min(0.999, float(before.median()) - 1e-3)
        assert (after > 0.98).float().mean() > (before > 0.98).float().mean() - 0.1


def test_untilted_normals_disagree_on_slanted_surfaces_only() -> None:
    height, width, zoom = 96, 120, 2.0
    box = (24, 30, 48, 60)
    for seed in range(6):
        out = nearer(window(scene(seed, (height, width)), box, (48, 60)), zoom)
        tilted = {**out, "normals": tilt(out["normals"], zoom)}
        centre, focal = (height / 2 - 24, width / 2 - 30), focal_of(height) / zoom
        kept, exact = agreement(out, centre, focal), agreement(tilted, centre, focal)
        assert exact.median() > 0.995
        assert kept.mean() < exact.mean() + 1e-3
    facing = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    assert torch.allclose(tilt(facing, 1.7), facing)
    assert tilt(torch.zeros(3, 1, 1), 1.7).equal(torch.zeros(3, 1, 1))


@given(st.integers(0, 10_000), st.floats(1.0, 3.0))
@settings(max_examples=20, deadline=None)
def test_depth_and_disparity_stay_inverse_to_each_other(seed: int, zoom: float) -> None:
    transform = Compose([RandomScaleCrop((zoom,)), RandomHorizontalFlip(), RandomRescale(0.7, 1.4)])
    out = transform(scene(seed % 7), Generator().manual_seed(seed))
    known = out["depth"] > 0
    assert (out["disparity"] > 0).equal(known)
    assert torch.allclose((out["depth"] * out["disparity"])[known], torch.tensor(2.0), rtol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_rescaling_divides_depth_by_the_factor_and_keeps_normals_unit(scale: float) -> None:
    before = scene(3)
    out = RandomRescale(scale, scale)(before, Generator())
    assert out["image"].shape == (3, round(48 * scale), round(64 * scale))
    assert torch.isin(out["depth"], before["depth"] / scale).all()
    middle = out["depth"][0, round(24 * scale), round(32 * scale)] * scale
    assert (middle - before["depth"][0, 23:26, 31:34]).abs().min() < 1e-5
    assert is_unit_or_zero(out["normals"])
    assert torch.isin(out["regression/two"][0].nan_to_num(), before["depth"]).all()


TRANSFORMS: dict[str, JointTransform] = {
    "flip": RandomHorizontalFlip(1.0),
    "scale-crop": RandomScaleCrop((1.3,)),
    "scale-crop-tilted": RandomScaleCrop((1.3,), tilt_normals=True),
    "rescale": RandomRescale(0.6, 0.9),
    "crop": RandomCrop((40, 70)),
    "letterbox": Letterbox((40, 70)),
    "resize": Resize((30, 30)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_all_targets_move_together_and_no_label_is_invented(transform: JointTransform) -> None:
    before = scene(11)
    out = transform(before, Generator().manual_seed(5))
    size = out["image"].shape[-2:]
    assert all(value.shape[-2:] == size for value in out.values())
    assert is_unit_or_zero(out["normals"])
    for key in ("segmentation", "segmentation/surface", "edges", "saliency"):
        assert out[key].dtype == before[key].dtype
        assert set(out[key].unique().tolist()) <= {*before[key].unique().tolist(), 255}
    inside = out["segmentation"] != 255
    known = out["depth"][0] > 0
    assert (out["segmentation"] == 0).equal(inside & ~known)  # the background alone has no depth
    assert (out["disparity"][0] > 0).equal(known)
    assert (out["normals"] != 0).any(0).equal(known)
    assert out["regression/two"].isnan().all(0).equal(~known)
    assert (out["saliency"][0] == 1).equal(inside & (out["segmentation"] >= 3))
    assert (out["edges"][0] == 1).equal(out["segmentation"] == 2)


@given(st.integers(0, 100), st.sampled_from([(48, 64), (41, 57)]), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_cropping_commutes_with_flipping(seed: int, size: tuple[int, int], draw: int) -> None:
    sample = scene(seed % 5, (48, 64))
    height, width = 32, 40
    generator = Generator().manual_seed(draw)
    top, left = (int(torch.randint(n, (), generator=generator)) for n in (48 - height + 1, 64 - width + 1))
    one = mirror(window(sample, (top, left, height, width), (height, width)))
    other = window(mirror(sample), (top, 64 - width - left, height, width), (height, width))
    assert all(torch.equal(one[key].nan_to_num(-1), other[key].nan_to_num(-1)) for key in sample)


def test_padding_is_unlabelled_and_the_colour_of_no_signal() -> None:
    out = pad(scene(2), (60, 64))
    for key, value in out.items():
        below = value[..., 48:, :].float()
        if key == "image":
            assert below[:, 0, 0].tolist() == [124, 116, 104]
        else:
            ignored = IGNORE_VALUES[key.partition("/")[0]]
            assert (below.isnan() if math.isnan(ignored) else below == ignored).all(), key
    small = scene(2)
    assert pad(small, (10, 64)) is small


def test_a_letterbox_shrinks_what_is_too_large_and_never_enlarges() -> None:
    sample = scene(4)
    fits = Letterbox((64, 80))(sample, Generator())
    assert all(fits[key][..., :48, :64].nan_to_num(-1).equal(sample[key].nan_to_num(-1)) for key in sample)
    shrunk = Letterbox((24, 64))(sample, Generator())
    assert shrunk["image"].shape == (3, 24, 64)
    assert (shrunk["segmentation"][:, 32:] == 255).all()
    assert (shrunk["segmentation"][:, :32] != 255).all()
    assert shrunk["depth"][..., :32].max() == pytest.approx(sample["depth"].max().item(), rel=0.1)  # metres are kept


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0)])
def test_bad_factors_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="RandomRescale: low and high must be positive and in order"):
        RandomRescale(low, high)


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([(12, 17), (3, 40), (30, 2)]))
@settings(max_examples=30, deadline=None)
def test_the_signed_distance_is_the_euclidean_one(seed: int, reach: int, size: tuple[int, int]) -> None:
    from scipy.ndimage import distance_transform_edt

    generator = Generator().manual_seed(seed)
    inside = torch.rand(size, generator=generator) < 0.4
    known = torch.rand(size, generator=generator) < 0.8
    found = signed_distance(inside, known, reach)[0]
    for side in (True, False):
        other = (known & (inside != side)).numpy()
        expected = distance_transform_edt(~other) - 0.5 if other.any() else np.full(size, np.inf)
        expected = (1 if side else -1) * np.minimum(expected / reach, 1)
        here = (known & (inside == side)).numpy()
        np.testing.assert_allclose(found.numpy()[here], expected[here], rtol=1e-5)
    assert found.isnan().equal(~known)


def test_the_signed_distance_commutes_with_mirroring() -> None:
    inside = torch.rand((20, 30), generator=Generator().manual_seed(1)) < 0.3
    known = torch.rand((20, 30), generator=Generator().manual_seed(2)) < 0.9
    direct = signed_distance(inside.flip(-1), known.flip(-1), 8)
    assert direct.nan_to_num(9).equal(signed_distance(inside, known, 8).flip(-1).nan_to_num(9))
