"""Statistics of attention logits and output softmaxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

HIDING = -50.0
"""Numbers added to logits at or below this value hide a position; models use -inf, -1e9, -1e4, and -100 in Swin."""

_MASKED = -5e3  # logits at or below it are taken for masked where the mask itself was not seen

_CHUNK = 1 << 22  # logits held at once


@dataclass(frozen=True)
class AttentionStatistics:
    """What one attention call looked like; all on the device of the model.

    Args:
        max_logit: Largest absolute logit among those that are not masked.
        entropy: Sum over the examined queries of the entropy of their weights, in nats.
        queries: Number of examined queries that see at least one key.
    """

    max_logit: Tensor
    entropy: Tensor
    queries: Tensor

    @property
    def mean_entropy(self) -> Tensor:
        """Mean entropy of a query's weights, in nats."""
        return self.entropy / self.queries


def attention_statistics(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    max_queries: int | None = None,
) -> AttentionStatistics:
    r"""Return the largest logit :math:`|q_i \cdot k_j| / \sqrt{d}` and the entropy of the weights.

    Computed in float32, or float64 for float64 inputs.

    Args:
        query: Queries.
        key: Keys; fewer heads than queries mean grouped queries.
        mask: True where a key may be seen, or numbers to add to the logits.
        is_causal: Whether a query sees only keys up to its own position.
        scale: Factor on the products; 1 over the square root of d by default.
        max_queries: Look at this many evenly spaced queries of a longer sequence.

    Shape:
        - query: ``(..., L, d)``; key: ``(..., S, d)``; mask broadcastable to ``(..., L, S)``.

    Example:
        >>> found = attention_statistics(torch.eye(2)[None] * 3, torch.eye(2)[None])
        >>> round(float(found.max_logit), 4), round(float(found.mean_entropy), 4)
        (2.1213, 0.3403)
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        length, keys = query.shape[-2], key.shape[-2]
        rows = _spaced(length, max_queries, query.device)
        if query.dim() >= 3 and key.shape[-3] not in (1, query.shape[-3]):
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])  # type: ignore[no-untyped-call]
        chosen = query.detach()[..., rows, :].to(dtype).expand(*leading, -1, -1).reshape(-1, len(rows), query.shape[-1])
        others = key.detach().to(dtype).expand(*leading, -1, -1).reshape(-1, keys, key.shape[-1])
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        bias, allowed = _split_mask(mask, dtype)
        if is_causal:
            causal = torch.arange(keys, device=query.device) <= rows[:, None]
            allowed = causal if allowed is None else _rows(allowed, rows, length) & causal
        else:
            allowed = None if allowed is None else _rows(allowed, rows, length)
        bias = None if bias is None else _rows(bias, rows, length)
        found = []
        step = max(1, _CHUNK // max(1, len(rows) * keys))
        for start in range(0, len(chosen), step):
            part = slice(start, start + step)
            logits = torch.bmm(chosen[part], others[part].transpose(1, 2)) * factor
            if bias is not None:
                logits = logits + _flat(bias, leading, len(rows), keys, part)
            visible = None if allowed is None else _flat(allowed, leading, len(rows), keys, part)
            found.append(_summary(logits, visible))
        return _joined(found)


def score_statistics(
    scores: Tensor, hidden: Tensor | None = None, max_queries: int | None = None
) -> AttentionStatistics:
    """Return the same from the scores that enter a softmax over their last dimension.

    Args:
        scores: ``(..., L, S)``, masks included.
        hidden: Where positions are known to be masked, broadcastable to the scores.
        max_queries: Look at this many evenly spaced queries of a longer sequence.
    """
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
        rows = _spaced(scores.shape[-2], max_queries, scores.device)
        logits = scores.detach()[..., rows, :].to(torch.promote_types(scores.dtype, torch.float32))
        visible = ~(logits <= _MASKED)
        return _summary(logits, visible if hidden is None else visible & ~_rows(hidden, rows, scores.shape[-2]))


def log_partition(logits: Tensor, dim: int, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum of log Z over the softmaxes along ``dim``, and how many were counted."""
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        log_z = torch.logsumexp(logits.detach().to(torch.promote_types(logits.dtype, torch.float32)), dim=dim)
        if counted is not None and counted.shape == log_z.shape:
            return torch.where(counted, log_z, torch.zeros_like(log_z)).sum(), counted.sum()
        return log_z.sum(), torch.as_tensor(log_z.numel(), device=log_z.device)


def _spaced(length: int, limit: int | None, device: torch.device) -> Tensor:
    if limit is None or length <= limit:
        return torch.arange(length, device=device)
    return torch.linspace(0, length - 1, limit, device=device).round().long()


def _split_mask(mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        return None, mask
    return mask.detach().to(dtype), mask.detach() > HIDING


def _rows(mask: Tensor, rows: Tensor, length: int) -> Tensor:
    return mask[..., rows, :] if mask.dim() >= 2 and mask.shape[-2] == length else mask


def _flat(mask: Tensor, leading: torch.Size, rows: int, keys: int, part: slice) -> Tensor:
    if mask.dim() <= 2:
        return mask.expand(1, rows, keys)
    return mask.expand(*leading, rows, keys).reshape(-1, rows, keys)[part]


def _summary(logits: Tensor, visible: Tensor | None) -> AttentionStatistics:
    if visible is None:
        largest = logits.abs().amax()
        entropy = torch.special.entr(logits.softmax(dim=-1)).sum()
        return AttentionStatistics(largest, entropy, torch.as_tensor(logits[..., 0].numel(), device=logits.device))
    visible = visible.expand_as(logits)
    largest = torch.where(visible, logits, torch.zeros_like(logits)).abs().amax()
    weights = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    seen = visible.any(dim=-1)
    entropy = torch.where(seen, torch.special.entr(weights).sum(dim=-1), torch.zeros_like(weights[..., 0])).sum()
    return AttentionStatistics(largest, entropy, seen.sum())


def _joined(parts: list[AttentionStatistics]) -> AttentionStatistics:
    if len(parts) == 1:
        return parts[0]
    return AttentionStatistics(
        torch.stack([part.max_logit for part in parts]).amax(),
        torch.stack([part.entropy for part in parts]).sum(),
        torch.stack([part.queries for part in parts]).sum(),
    )


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds numbers that can be looked at: not nested, fake, or inside a transform."""
    return (
        not tensor.is_nested
        and tensor.device.type != "meta"
        and tensor.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not isinstance(tensor, FakeTensor)
    )
