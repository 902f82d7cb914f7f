"""Cross entropy of the labelled tokens of a batch of sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def check_token_shapes(owner: str, logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless these are logits ``(B, L, V)`` and integer labels ``(B, L)``."""
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"{owner}: logits must be (B, L, V) and labels (B, L), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{owner}: labels must hold integers, got {labels.dtype}; convert them with .long().")


def token_losses(owner: str, logits: Tensor, labels: Tensor, labelled: Tensor, argument: str = "labels") -> Tensor:
    """Return the cross entropy of every token, zero where it is not labelled.

    Only the rows of labelled tokens are copied and turned into float32, which matters where most tokens are prompt.

    Args:
        owner: Name of the calling class, for messages.
        logits: Scores of the next token, ``(B, L, V)``.
        labels: The next token, ``(B, L)``.
        labelled: Which of them count, boolean ``(B, L)``.
        argument: What the caller calls the labels, for messages.

    Returns:
        ``(B, L)``, at least float32.

    Raises:
        ValueError: If a label is no token; read on the CPU only, where it is cheap.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if torch.compiler.is_compiling():  # whose graphs do without shapes that depend on values
        safe = torch.where(labelled, labels, 0).long()
        values = F.cross_entropy(logits.to(dtype).movedim(-1, 1), safe, reduction="none")
        return torch.where(labelled, values, torch.zeros_like(values))
    chosen = labels[labelled].long()
    if chosen.device.type == "cpu":
        wrong = (chosen < 0) | (chosen >= logits.shape[-1])
        if bool(wrong.any()):
            raise ValueError(
                f"{owner}: {argument} must hold tokens 0..{logits.shape[-1] - 1} or the ignored value, got "
                f"{chosen[wrong][0].item()} among {int(wrong.sum())} wrong labels; the model's vocabulary must be as "
                "large as the tokenizer's."
            )
    values = F.cross_entropy(logits[labelled].to(dtype), chosen, reduction="none")
    return values.new_zeros(labelled.shape).masked_scatter(labelled, values)
