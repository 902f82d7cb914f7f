"""Small language models in LightningModules of both packages, which know nothing of any callback."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytorch_lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_mtl.nn import TinyDecoder


class Tokens(Dataset[Tensor]):
    """Random tokens, each twice."""

    def __init__(self, rows: int = 32, length: int = 8) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(8, (rows, length // 2), generator=generator).repeat_interleave(2, dim=1)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]


class _Language:
    """What the models share."""

    def build(self, rate: float, dropout: float, **options: Any) -> None:
        self.rate = rate
        defaults: dict[str, Any] = {"vocab_size": 8, "dim": 16, "depth": 2, "num_heads": 2, "qk_norm": None}
        self.net: Any = TinyDecoder(**(defaults | options), dropout=dropout)

    def loss(self, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self.net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate)  # type: ignore[attr-defined]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Language(_Language, pl.LightningModule):
    """Automatic optimization."""

    def __init__(self, rate: float = 1e-2, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.build(rate, dropout, **options)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)


class LanguageOfTheOtherPackage(_Language, pytorch_lightning.LightningModule):
    """The same on ``pytorch_lightning``."""

    def __init__(self, rate: float = 1e-2, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.build(rate, dropout, **options)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)


class ManualLanguage(_Language, pl.LightningModule):
    """Two losses and two optimizers, stepped by hand."""

    def __init__(self, rate: float = 1e-2, dropout: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.build(rate, dropout, **options)
        self.critic = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.net.parameters(), lr=self.rate), torch.optim.SGD(self.critic.parameters(), 0.1)]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc, union-attr]
        logits = self.net(batch[:, :-1])
        first.zero_grad()
        self.manual_backward(F.cross_entropy(logits.transpose(1, 2), batch[:, 1:]))
        first.step()
        second.zero_grad()
        self.manual_backward((self.critic(logits.detach()) - 1).square().mean())
        second.step()


def tokens(rows: int = 32, batch_size: int = 4, shuffle: bool = False) -> DataLoader[Tensor]:
    return DataLoader(Tokens(rows), batch_size=batch_size, shuffle=shuffle)
