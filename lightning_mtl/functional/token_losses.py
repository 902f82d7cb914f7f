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


def token_losses(owner: str, logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Return the cross entropy of every labelled token.

    Only the rows of labelled tokens are copied and turned into float32, which matters where most tokens are prompt.

    Args:
        owner: Name of the calling class, for messages.
        logits: Scores of the next token, ``(B, L, V)``.
        labels: The next token, ``(B, L)``.
        labelled: Which of them count, boolean ``(B, L)``.

    Returns:
        ``(N,)``, at least float32, in the order of the N labelled tokens.

    Raises:
        ValueError: If a label is no token; read on the CPU only, where it is cheap.
    """
    chosen = labels[labelled].long()
    if chosen.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (chosen < 0) | (chosen >= logits.shape[-1])
        if bool(wrong.any()):
            raise ValueError(
                f"{owner}: labels must hold tokens 0..{logits.shape[-1] - 1} or the ignored value, got "
                f"{chosen[wrong][0].item()} among {int(wrong.sum())} wrong labels; the model's vocabulary must be as "
                "large as the tokenizer's."
            )
    scored = logits[labelled].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(scored, chosen, reduction="none")


def spread(values: Tensor, labelled: Tensor) -> Tensor:
    """Return the values of the labelled tokens at their places ``(B, L)``, zero elsewhere."""
    return values.new_zeros(labelled.shape).masked_scatter(labelled, values)
