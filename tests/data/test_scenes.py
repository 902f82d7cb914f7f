from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mtl.data import SyntheticScenes, SyntheticScenesDataModule
from lightning_mtl.data.dense import label_boundaries
from lightning_mtl.data.scenes import (
    BACKGROUND,
    BOX,
    CYLINDER,
    FLOOR,
    MAX_DEPTH,
    SPHERE,
    WALL,
    Scene,
    camera_rays,
    random_scene,
    render,
    visible_boxes,
)

SIZE = (60, 72)


Triple = tuple[float, float, float]


def one_body(kind: int, center: Triple, half: Triple, yaw: float = 0.0) -> Scene:
    """A single body in front of a level camera, a floor out of sight, no walls."""
    return Scene(
        kind=torch.tensor([kind]),
        center=torch.tensor([center]),
        half=torch.tensor([half]),
        yaw=torch.tensor([yaw]),
        floor=-100.0,
        walls=torch.empty(0, 4),
        pitch=0.0,
        light=torch.tensor([1.0, 3.0, 0.0]),
        ambient=0.3,
        color=torch.rand(2, 2, 3),
        wave=torch.rand(2, 3, 4),
        pattern=torch.tensor([1, 0]),
        gloss=torch.zeros(2),
    )


def points(maps: dict[str, Tensor]) -> Tensor:
    return camera_rays(SIZE).reshape(3, *SIZE) * maps["depth"]


def test_a_sphere_has_the_depth_and_normals_of_its_equation() -> None:
    center, radius = torch.tensor([0.4, -0.3, -4.0]), 1.2
    maps = render(one_body(SPHERE, (0.4, -0.3, -4.0), (radius,) * 3), SIZE)
    rays = camera_rays(SIZE).double()
    # |t d - c|^2 = r^2, in float64 and by the textbook formula
    a, b = (rays * rays).sum(0), (rays * center.double()[:, None]).sum(0)
    disc = b**2 - a * (center.double() @ center.double() - radius**2)
    expected = ((b - disc.clamp_min(0).sqrt()) / a).reshape(SIZE)
    hit = (disc > 0).reshape(SIZE)
    assert hit.equal(maps["segmentation"] == SPHERE)
    assert torch.allclose(maps["depth"][0][hit].double(), expected[hit], atol=2e-4)
    normal = (points(maps) - center[:, None, None]) / radius
    assert torch.allclose(maps["normals"][:, hit], normal[:, hit], atol=1e-3)
    assert (maps["depth"][0][~hit] == 0).all()
    assert (maps["normals"][:, ~hit] == 0).all()
    assert (maps["segmentation"][~hit] == BACKGROUND).all()


@pytest.mark.parametrize("pitch", [0.0, 0.25])
def test_a_floor_has_the_depth_and_normal_of_its_plane(pitch: float) -> None:
    world = replace(one_body(SPHERE, (0.0, 0.0, 5.0), (0.5,) * 3), floor=-1.3, pitch=pitch)  # the ball is behind us
    maps = render(world, SIZE)
    floor = maps["segmentation"] == FLOOR
    assert 0.1 < floor.float().mean() < 0.9
    up = torch.tensor([0.0, math.cos(pitch), math.sin(pitch)])  # the camera looks down: up leans towards the viewer
    assert torch.allclose(maps["normals"][:, floor], up[:, None].expand(3, int(floor.sum())), atol=1e-6)
    height = (up[:, None, None] * points(maps)).sum(0)
    assert torch.allclose(height[floor], torch.tensor(-1.3), atol=1e-4)
    assert maps["depth"].max() <= MAX_DEPTH


def test_a_wall_has_the_depth_and_normal_of_its_plane() -> None:
    normal = torch.tensor([math.sin(0.3), 0.0, math.cos(0.3)])
    world = replace(
        one_body(SPHERE, (0.0, 0.0, 5.0), (0.5,) * 3),
        walls=torch.tensor([[*normal.tolist(), 4.0]]),
        color=torch.rand(3, 2, 3),
        wave=torch.rand(3, 3, 4),
        pattern=torch.zeros(3, dtype=torch.int64),
        gloss=torch.zeros(3),
    )
    maps = render(world, SIZE)
    assert (maps["segmentation"] == WALL).all()
    assert torch.allclose((normal[:, None, None] * points(maps)).sum(0), torch.tensor(-4.0), atol=1e-4)
    assert torch.allclose(maps["normals"], normal[:, None, None].expand(3, *SIZE), atol=1e-6)


def test_a_turned_box_shows_points_on_its_faces() -> None:
    center, half, yaw = torch.tensor([0.2, -0.2, -4.0]), torch.tensor([0.8, 0.6, 0.5]), 0.7
    world = replace(one_body(BOX, tuple(center.tolist()), tuple(half.tolist()), yaw), pitch=0.0)
    maps = render(world, SIZE)
    hit = maps["segmentation"] == BOX
    assert hit.float().mean() > 0.05
    offset = points(maps)[:, hit] - center[:, None]
    cos, sin = math.cos(yaw), math.sin(yaw)
    own = torch.stack([cos * offset[0] + sin * offset[2], offset[1], cos * offset[2] - sin * offset[0]])
    share = (own / half[:, None]).abs().amax(0)
    assert torch.allclose(share, torch.ones_like(share), atol=1e-4)
    assert len(torch.unique((maps["normals"][:, hit] * 1e3).round(), dim=1).T) == 2  # two upright faces in view
    assert ((maps["normals"] * points(maps)).sum(0)[hit] < 0).all()


def test_a_cylinder_shows_points_on_its_side_and_cap() -> None:
    center, half = torch.tensor([0.0, -1.2, -3.5]), torch.tensor([0.7, 0.5, 0.7])
    maps = render(one_body(CYLINDER, tuple(center.tolist()), tuple(half.tolist())), SIZE)
    hit = maps["segmentation"] == CYLINDER
    offset = points(maps)[:, hit] - center[:, None]
    radius, height = offset[0].hypot(offset[2]), offset[1]
    normal = maps["normals"][:, hit]
    cap = normal[1] > 0.5
    assert cap.any()
    assert (~cap).any()
    assert torch.allclose(height[cap], half[1], atol=1e-4)
    assert (radius[cap] <= half[0] + 1e-4).all()
    assert torch.allclose(radius[~cap], half[0], atol=1e-4)
    assert torch.allclose(normal[::2, ~cap], offset[::2, ~cap] / half[0], atol=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_normals_are_unit_face_the_viewer_and_agree_with_the_gradient_of_the_depth(seed: int) -> None:
    maps = render(random_scene(np.random.default_rng(seed)), SIZE)
    seen = maps["depth"][0] > 0
    assert torch.allclose(maps["normals"].norm(dim=0)[seen], torch.tensor(1.0), atol=1e-5)
    position = points(maps)
    assert ((maps["normals"] * position).sum(0)[seen] < 1e-4).all()
    right = position[:, :-1, 1:] - position[:, :-1, :-1]
    down = position[:, 1:, :-1] - position[:, :-1, :-1]
    measured = torch.nn.functional.normalize(torch.linalg.cross(down, right, dim=0), dim=0)
    surface = maps["surface"]
    inside = (surface[:-1, :-1] == surface[1:, :-1]) & (surface[:-1, :-1] == surface[:-1, 1:]) & seen[:-1, :-1]
    flat = inside & torch.isin(maps["segmentation"][:-1, :-1], torch.tensor([FLOOR, WALL], dtype=torch.uint8))
    cosine = (measured * maps["normals"][:, :-1, :-1]).sum(0)
    assert (cosine[flat] > 0.99).all()
    assert cosine[inside].median() > 0.995


@pytest.mark.parametrize("seed", range(10))
def test_boxes_are_tight_around_the_visible_pixels(seed: int) -> None:
    world = random_scene(np.random.default_rng(seed))
    surface = render(world, SIZE)["surface"]
    found = visible_boxes(surface, world.kind)
    expected, labels = [], []
    for body, kind in enumerate(world.kind.tolist()):
        rows, columns = (surface == body).nonzero(as_tuple=True)
        if len(rows):
            expected.append([columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1])
            labels.append(kind - SPHERE + 1)
    assert found["boxes"].tolist() == expected
    assert found["labels"].tolist() == labels


def test_a_scene_without_a_visible_body_has_no_boxes() -> None:
    found = visible_boxes(torch.full((4, 5), 3), torch.tensor([SPHERE, BOX]))
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == (0,)


def test_edges_are_the_boundaries_between_surfaces() -> None:
    data = SyntheticScenes(3, tasks=("edges", "segmentation"), size=SIZE)
    for index in range(3):
        _, targets = data[index]
        classes = label_boundaries(targets["segmentation"])
        assert (targets["edges"][0] >= classes).all()  # two bodies of one class have an edge between them too
        assert 0.01 < targets["edges"].mean() < 0.3


def test_lit_sides_are_brighter_than_sides_in_the_shade() -> None:
    ball = one_body(SPHERE, (0.0, 0.0, -4.0), (1.0,) * 3)
    world = replace(ball, light=torch.tensor([6.0, 0.0, -4.0]), pattern=torch.tensor([0, 0]))
    maps = render(world, SIZE)
    image, normal = maps["image"].float().mean(0), maps["normals"][0]
    assert image[normal > 0.6].mean() > 1.3 * image[(normal < -0.1) & (maps["segmentation"] == SPHERE)].mean()


def test_a_body_throws_its_shadow_on_the_floor() -> None:
    ball = one_body(SPHERE, (0.0, -0.5, -4.0), (0.4,) * 3)
    world = replace(ball, floor=-1.3, pitch=0.2, light=torch.tensor([0.0, 4.0, -4.0]), pattern=torch.tensor([0, 0]))
    with_ball = render(world, SIZE)
    without = render(replace(world, center=torch.tensor([[0.0, -0.5, 50.0]])), SIZE)
    floor = (with_ball["segmentation"] == FLOOR) & (without["segmentation"] == FLOOR)
    darker = (without["image"].float() - with_ball["image"].float()).mean(0) > 10
    assert (floor & darker).sum() > 20


def test_samples_follow_from_seed_split_and_index_alone() -> None:
    image = SyntheticScenes(5, "train", size=SIZE, seed=3)[4][0]
    assert image.equal(SyntheticScenes(9, "train", size=SIZE, seed=3, cache=True)[4][0])
    assert not image.equal(SyntheticScenes(5, "val", size=SIZE, seed=3)[4][0])
    assert not image.equal(SyntheticScenes(5, "train", size=SIZE, seed=4)[4][0])


def test_all_classes_occur_and_a_part_of_the_scenes_is_open() -> None:
    data = SyntheticScenes(60, size=(24, 24))
    counts = torch.zeros(6)
    open_scenes = 0
    for _, targets in (data[i] for i in range(60)):
        counts += torch.bincount(targets["segmentation"].flatten(), minlength=6)
        open_scenes += int((targets["depth"] == 0).float().mean() > 0.1)
    assert (counts / counts.sum() > 0.01).all()
    assert 5 < open_scenes < 40


def test_boxes_are_collated_as_lists() -> None:
    data = SyntheticScenesDataModule(
        tasks=("depth", "boxes"), size=SIZE, num_train=4, num_val=2, num_test=2, batch_size=2
    )
    data.setup("fit")
    image, targets = next(iter(data.train_dataloader()))
    assert image.shape == (2, 3, *SIZE)
    assert targets["depth"].shape == (2, 1, *SIZE)
    assert [set(entry) for entry in targets["boxes"]] == [{"boxes", "labels"}] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "tasks must be some of"),
        ({"tasks": ("saliency",)}, "tasks must be some of"),
        ({"size": (0, 4)}, "size must be positive"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"num_workers": 0, "persistent_workers": True}, "persistent_workers must be False when num_workers is 0"),
        ({"label_fraction": {"depth": 1.5}}, r"label_fraction must be in \[0, 1\], got 1.5 for task 'depth'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"SyntheticScenesDataModule: {message}"):
        SyntheticScenesDataModule(**options)  # type: ignore[arg-type]
