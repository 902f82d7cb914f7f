"""Shared networks of different kinds, with heads, for tests of task gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sentence(nn.Module):
    """Embedding with padding, attention, layers of three-dimensional input, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 12)
        self.narrow = nn.Linear(12, 8, bias=False)
        self.twice = nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.norm(x))))
        x = self.twice(torch.tanh(self.twice(x)))
        return (x @ self.matrix).mean(1)


class Tied(nn.Module):
    """Embedding whose table is also the last layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.relu(self.layer(self.embed(tokens))).mean(1), self.embed.weight[:8])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Conv2d(6, 8, (1, 3), padding="same"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def temporal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 5, stride=2, padding=1), nn.Tanh(), nn.Conv1d(6, 8, 1), nn.Conv1d(8, 8, 3, dilation=2), Mean()
    )


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def mlp() -> nn.Module:
    layers = [nn.Linear(5, 16), nn.ReLU(inplace=True), nn.LayerNorm(16), nn.Linear(16, 16, bias=False), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(16, 8), nn.ReLU())


def from_timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        return model

    return make


def images(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=dtype)


TRUNKS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.dtype], Tensor], int]] = {
    "mlp": (mlp, lambda dtype: torch.randn(6, 5, dtype=dtype), 8),
    "convolutional": (convolutional, lambda dtype: torch.randn(3, 3, 9, 8, dtype=dtype), 8),
    "temporal": (temporal, lambda dtype: torch.randn(3, 3, 17, dtype=dtype), 8),
    "sentence": (Sentence, lambda dtype: torch.randint(0, 11, (4, 5)), 8),
    "tied": (Tied, lambda dtype: torch.randint(0, 11, (4, 5)), 8),
    "resnet18": (from_timm("resnet18"), images, 512),
    "vit_tiny": (from_timm("vit_tiny_patch16_224", img_size=32, patch_size=16, depth=2), images, 192),
}


class Problem(nn.Module):
    """A trunk with one head and one loss a task."""

    def __init__(self, trunk: str = "mlp", tasks: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        make, data, width = TRUNKS[trunk]
        self.encoder = make().to(dtype)
        self.heads = nn.ModuleDict({f"t{k}": nn.Linear(width, k + 1, dtype=dtype) for k in range(tasks)})
        self.inputs = data(dtype)

    def losses(
        self, features: Tensor | None = None, rows: slice = slice(None), alias: bool = False
    ) -> dict[str, Tensor]:
        z = self.encoder(self.inputs[rows]) if features is None else features
        return {
            name: (k + 1) * (head(z.view_as(z) if alias else z) - 0.3 * k).square().mean()
            for k, (name, head) in enumerate(self.heads.items())
        }

    @property
    def shared(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]


def rows_of(losses: dict[str, Tensor], leaves: list[Any]) -> Tensor:
    """Return the gradient of every loss as a row, by one backward pass each."""
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def flat_grads(leaves: list[Any]) -> Tensor:
    return torch.cat([leaf.grad.flatten() for leaf in leaves])
