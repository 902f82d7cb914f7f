"""Ray-traced scenes of simple bodies with exact dense labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_NAMES = ("background", "floor", "wall", "sphere", "box", "cylinder")
"""Classes of the segmentation. Background is what lies beyond :data:`MAX_DEPTH`."""

BACKGROUND, FLOOR, WALL, SPHERE, BOX, CYLINDER = range(6)

MAX_DEPTH = 10.0
"""Metres; nothing is seen beyond, as with a depth camera."""

FIELD_OF_VIEW = math.radians(60)
"""Vertical opening angle of the camera."""

_EPS = 1e-9


@dataclass(frozen=True)
class Scene:
    """Bodies in a world whose origin is the camera, y up, z towards the viewer.

    Attributes:
        kind: Class of each body ``(N,)``: sphere, box or upright cylinder.
        center: Centres ``(N, 3)``.
        half: Half extents ``(N, 3)``; a sphere or cylinder has its radius in x and z.
        yaw: Turn of each body about the vertical ``(N,)``, radians.
        floor: Height of the floor plane, negative: below the camera.
        walls: Wall planes ``(M, 4)``: unit normal pointing to the camera, and distance from it.
        pitch: How far the camera looks down, radians.
        light: Position of the lamp ``(3,)``.
        ambient: Share of light that comes from everywhere.
        color: Two colours of each surface ``(N + 1 + M, 2, 3)``: bodies, floor, walls.
        wave: Three waves of each surface's texture ``(N + 1 + M, 3, 4)``: wave vector and phase.
        pattern: Texture of each surface ``(N + 1 + M,)``: 0 plain, 1 checks, 2 stripes, 3 clouds.
        gloss: Strength of the highlight of each surface ``(N + 1 + M,)``.
    """

    kind: Tensor
    center: Tensor
    half: Tensor
    yaw: Tensor
    floor: float
    walls: Tensor
    pitch: float
    light: Tensor
    ambient: float
    color: Tensor
    wave: Tensor
    pattern: Tensor
    gloss: Tensor


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: two to six bodies that stand on a floor without touching, up to three walls, one lamp."""
    floor = -rng.uniform(0.9, 1.5)
    half_width = math.tan(FIELD_OF_VIEW / 2)
    kinds: list[int] = []
    centers: list[tuple[float, float, float]] = []
    halves: list[tuple[float, float, float]] = []
    reach: list[float] = []
    wanted = int(rng.integers(2, 7))
    for _ in range(4 * wanted):
        if len(kinds) == wanted:
            break
        kind = int(rng.integers(SPHERE, CYLINDER + 1))
        radius = rng.uniform(0.2, 0.6)
        if kind == SPHERE:
            half = (radius, radius, radius)
        elif kind == BOX:
            half = (radius, rng.uniform(0.15, 0.7), rng.uniform(0.2, 0.6))
        else:
            half = (radius, rng.uniform(0.2, 0.8), radius)
        z = -rng.uniform(2.0, 5.5)
        x = rng.uniform(-0.85, 0.85) * half_width * -z
        extent = math.hypot(half[0], half[2])
        if any(math.hypot(x - c[0], z - c[2]) < extent + r for c, r in zip(centers, reach, strict=True)):
            continue
        kinds.append(kind)
        centers.append((x, floor + half[1], z))
        halves.append(half)
        reach.append(extent)
    walls = []
    turn = rng.uniform(-0.35, 0.35)
    if rng.random() < 0.75:
        walls.append((math.sin(turn), 0.0, math.cos(turn), rng.uniform(6.0, 8.0)))
    walls += [
        (-side * math.cos(turn), 0.0, side * math.sin(turn), rng.uniform(2.8, 4.0))
        for side in (-1, 1)
        if rng.random() < 0.35
    ]
    surfaces = len(kinds) + 1 + len(walls)
    hue = rng.uniform(0, 1, (surfaces, 2, 1))
    saturation, value = rng.uniform(0.15, 0.9, (surfaces, 2, 1)), rng.uniform(0.35, 0.95, (surfaces, 2, 1))
    saturation[len(kinds) :] *= 0.4  # rooms are paler than things
    angle = 2 * math.pi * (hue + np.array([0.0, 1 / 3, 2 / 3]))
    color = value * (1 - saturation * (0.5 - 0.5 * np.cos(angle)))
    direction = rng.normal(size=(surfaces, 3, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    wave = np.concatenate(
        [direction * rng.uniform(4.0, 14.0, (surfaces, 3, 1)), rng.uniform(0, 2 * math.pi, (surfaces, 3, 1))], axis=-1
    )
    order = np.argsort(kinds, kind="stable")

    def tensor(values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))

    return Scene(
        kind=torch.from_numpy(np.asarray(kinds, dtype=np.int64)[order]),
        center=tensor(centers)[torch.from_numpy(order)],
        half=tensor(halves)[torch.from_numpy(order)],
        yaw=tensor(rng.uniform(-math.pi, math.pi, len(kinds))),
        floor=floor,
        walls=tensor(walls).reshape(-1, 4),
        pitch=rng.uniform(0.05, 0.3),
        light=tensor([rng.uniform(-2.5, 2.5), rng.uniform(1.5, 3.0), rng.uniform(-3.0, 0.5)]),
        ambient=rng.uniform(0.2, 0.4),
        color=tensor(color),
        wave=tensor(wave),
        pattern=torch.from_numpy(rng.integers(0, 4, surfaces)),
        gloss=tensor(rng.uniform(0, 0.5, surfaces) * (rng.random(surfaces) < 0.5)),
    )


def camera_rays(size: tuple[int, int]) -> Tensor:
    """Return the direction of every pixel's ray ``(3, H*W)`` in camera axes, with z = -1.

    A point at depth d on the ray is ``d * direction``: depth is measured along the optical axis, not along the ray.
    """
    height, width = size
    focal = height / (2 * math.tan(FIELD_OF_VIEW / 2))
    y = -(torch.arange(height, dtype=torch.float32) + 0.5 - height / 2) / focal
    x = (torch.arange(width, dtype=torch.float32) + 0.5 - width / 2) / focal
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y, -torch.ones_like(grid_x)]).reshape(3, -1)


# Below, vectors are (..., 3, P): one contiguous row per coordinate is several times faster than rows of three.


def _dot(a: Tensor, b: Tensor, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    total = a[..., axes[0], :] * b[..., axes[0], :]
    for axis in axes[1:]:
        total = total.addcmul(a[..., axis, :], b[..., axis, :])
    return total


def _unit(vectors: Tensor) -> Tensor:
    return vectors * _dot(vectors, vectors).clamp_min(_EPS).rsqrt().unsqueeze(-2)


def _turn(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``(..., 3, P)`` vectors about the vertical."""
    x, y, z = vectors.unbind(-2)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=-2)


def _round_interval(o: Tensor, d: Tensor, radius: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return where rays ``o + t d`` (relative to the centre) are within ``radius`` of it, measured in some axes."""
    a = _dot(d, d, axes).clamp_min(_EPS)
    middle = -_dot(d, o, axes) / a
    closest = o + middle.unsqueeze(-2) * d
    nearest = _dot(closest, closest, axes)  # well conditioned, unlike b^2 - a c
    square = (radius**2 - nearest) / a
    root = square.clamp_min(0).sqrt()
    return torch.where(square < 0, math.inf, middle - root), middle + root


def _slab_interval(o: Tensor, d: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rays are between the two planes at distance ``half`` from the centre, for every axis."""
    inverse = torch.where(d.abs() < _EPS, _EPS, d).reciprocal()
    middle, reach = -o * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _entry(scene: Scene, origin: Tensor, direction: Tensor, near: float) -> Tensor:
    """Return where rays enter each body, in units of the direction; inf where they miss it or enter before ``near``.

    Shape:
        - origin: ``(3, P)`` or ``(3, 1)``; direction: ``(3, P)``; returns ``(N, P)``.
    """
    entries = []
    for kind in (SPHERE, BOX, CYLINDER):
        chosen = scene.kind == kind
        if not chosen.any():
            continue
        half = scene.half[chosen][..., None]
        o = origin - scene.center[chosen][..., None]
        d = direction.expand(len(half), *direction.shape)
        if kind == SPHERE:
            enter, leave = _round_interval(o, d, half[:, 0], (0, 1, 2))
        elif kind == CYLINDER:
            enter, leave = _round_interval(o, d, half[:, 0], (0, 2))
            cap_in, cap_out = _slab_interval(o[:, 1], d[:, 1], half[:, 1])
            enter, leave = torch.maximum(enter, cap_in), torch.minimum(leave, cap_out)
        else:
            yaw = scene.yaw[chosen][:, None]
            turn = (yaw.cos(), yaw.sin())
            face_in, face_out = _slab_interval(_turn(o, *turn), _turn(d, *turn), half)
            enter, leave = face_in.amax(-2), face_out.amin(-2)
        entries.append(torch.where((enter <= leave) & (enter > near), enter, math.inf))
    return torch.cat(entries)


def _body_normals(kind: Tensor, half: Tensor, local: Tensor) -> Tensor:
    """Return outward unit normals ``(3, P)`` at surface points given in the axes of their bodies."""
    share = local / half
    size = share.abs()
    face = (size == size.amax(0)) * share.sign()
    on_cap = size[1] > share[0].hypot(share[2])
    upright = local.new_tensor([[0.0], [1.0], [0.0]])
    cylinder = torch.where(on_cap, upright * share.sign(), local * (1 - upright))
    return _unit(torch.where(kind == SPHERE, local, torch.where(kind == BOX, face, cylinder)))


def _surface_table(scene: Scene) -> Tensor:
    """Return what :func:`render` needs to know of each surface, one column each: bodies, floor, walls, background."""
    bodies, walls = scene.kind.shape[0], scene.walls.shape[0]
    flat = torch.zeros(3, bodies + 1)
    flat[1, bodies] = 1.0

    def pad(values: Tensor, value: float = 0.0) -> Tensor:
        rows = values.reshape(values.shape[0], -1).T
        return F.pad(rows, (0, bodies + walls + 2 - rows.shape[1]), value=value)

    return torch.cat(
        [
            pad(scene.center),
            pad(scene.half, 1.0),
            pad(scene.yaw.cos(), 1.0),
            pad(scene.yaw.sin()),
            torch.cat([flat, scene.walls[:, :3].T, torch.zeros(3, 1)], dim=1),
            torch.tensor([[*scene.kind.tolist(), FLOOR, *[WALL] * walls, BACKGROUND]], dtype=torch.float32),
            pad(scene.color),
            pad(scene.wave),
            pad(scene.pattern.float()),
            pad(scene.gloss),
        ]
    )


def _texture(color: Tensor, wave: Tensor, pattern: Tensor, local: Tensor) -> Tensor:
    """Return the albedo ``(3, P)`` of points on surfaces."""
    first, second, third = torch.stack([_dot(wave[i : i + 3], local) + wave[i + 3] for i in (0, 4, 8)]).sin()
    clouds = 0.5 + (first + second + third) / 6
    checks = first * second * third > 0
    mix = clouds * (pattern == 3) + (checks & (pattern == 1)) + ((first > 0) & (pattern == 2))
    return torch.lerp(color[:3], color[3:], mix)


def render(scene: Scene, size: tuple[int, int]) -> dict[str, Tensor]:
    """Trace one ray through the centre of every pixel.

    Args:
        scene: What to show.
        size: Height and width.

    Returns:
        ``image`` ``(3, H, W)`` uint8; ``segmentation`` ``(H, W)`` uint8, see :data:`CLASS_NAMES`; ``surface``
        ``(H, W)`` uint8, a number of its own for each body (its position in the scene), floor, wall and the background;
        ``depth`` ``(1, H, W)`` float32 metres along the optical axis, 0 in the background; ``normals`` ``(3, H, W)``
        float32 unit vectors in camera axes (x right, y up, z towards the viewer), zero in the background.
    """
    cos, sin = math.cos(scene.pitch), math.sin(scene.pitch)
    to_world = torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    direction = to_world @ camera_rays(size)

    down = direction[1]
    floor_entry = torch.where(down < -_EPS, scene.floor / down, math.inf)
    wall_speed = scene.walls[:, :3] @ direction
    wall_entry = torch.where(wall_speed < -_EPS, -scene.walls[:, 3:] / wall_speed, math.inf)
    beyond = torch.full_like(down, MAX_DEPTH)
    body_entry = _entry(scene, torch.zeros(3, 1), direction, near=0.05)
    depth, surface = torch.cat([body_entry, floor_entry[None], wall_entry, beyond[None]]).min(0)

    properties = _surface_table(scene).index_select(1, surface)
    center, half, yaw_cos, yaw_sin, flat, kind, color, wave, pattern, gloss = torch.split(
        properties, [3, 3, 1, 1, 3, 1, 6, 12, 1, 1]
    )
    seen = kind[0] != BACKGROUND
    point = depth * direction
    local = _turn(point - center, yaw_cos[0], yaw_sin[0])
    body_normal = _turn(_body_normals(kind[0], half, local), yaw_cos[0], -yaw_sin[0])
    normal = torch.where(kind >= SPHERE, body_normal, flat)

    to_light = scene.light[:, None] - point
    square = _dot(to_light, to_light)
    to_light_unit = to_light * square.rsqrt()
    lit = (_entry(scene, point + 1e-3 * normal, to_light, near=0.0) >= 1).all(0)
    diffuse = _dot(normal, to_light_unit).clamp_min(0) * lit * (1.25 / (1 + 0.03 * square))
    half_way = _unit(to_light_unit - _unit(direction))
    highlight = _dot(half_way, normal).clamp_min(0)
    for _ in range(5):
        highlight = highlight * highlight
    highlight = gloss * highlight * lit
    albedo = _texture(color, wave, pattern[0], local)
    radiance = albedo * (scene.ambient + (1 - scene.ambient) * diffuse) + highlight
    horizon, zenith = torch.tensor([[0.75], [0.8], [0.85]]), torch.tensor([[0.35], [0.5], [0.75]])
    radiance = torch.where(seen, radiance, torch.lerp(horizon, zenith, (down + 0.1).clamp(0, 1)))
    image = (radiance.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
    return {
        "image": image.reshape(3, *size),
        "segmentation": kind.to(torch.uint8).reshape(size),
        "surface": surface.to(torch.uint8).reshape(size),
        "depth": (depth * seen).reshape(1, *size),
        "normals": ((to_world.T @ normal) * seen).reshape(3, *size),
    }


def visible_boxes(surface: Tensor, kind: Tensor) -> dict[str, Tensor]:
    """Return the tight boxes of the visible part of each body.

    Args:
        surface: Surface of each pixel ``(H, W)``, as :func:`render` gives it.
        kind: Class of each body ``(N,)``.

    Returns:
        ``boxes`` ``(M, 4)`` float32, x1 y1 x2 y2 in pixels with exclusive right and lower ends, and ``labels`` ``(M,)``
        int64: 1 sphere, 2 box, 3 cylinder. Bodies that are out of sight have no box.
    """
    visible = surface[None] == torch.arange(len(kind))[:, None, None]
    shown = visible.flatten(1).any(1)
    visible = visible[shown].to(torch.uint8)
    columns, rows = visible.amax(1), visible.amax(2)
    x1, y1 = columns.argmax(1), rows.argmax(1)
    x2 = columns.shape[1] - columns.flip(1).argmax(1)
    y2 = rows.shape[1] - rows.flip(1).argmax(1)
    return {"boxes": torch.stack([x1, y1, x2, y2], 1).float(), "labels": kind[shown] - SPHERE + 1}
