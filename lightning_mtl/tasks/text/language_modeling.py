"""Next-token prediction on labelled tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightning_mtl.losses.language import TokenCrossEntropy
from lightning_mtl.metrics import SequenceExactMatch, TaskMetrics, TokenAccuracy, TokenPerplexity
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable, nothing_to_draw
from lightning_mtl.tasks.supervised import SupervisedTask


class LanguageModeling(SupervisedTask):
    """Predict the next token wherever the target has one: instruction tuning, generation by a causal language model.

    Every task of a :class:`~lightning_mtl.nn.CausalLanguageModel` is one of these: the features are the logits already,
    the default head gives them on, and all tasks share everything. Metrics: ``accuracy`` over tokens, ``perplexity``,
    and ``exact_match`` over rows, which for one reference answer equals that of greedy decoding.

    Args:
        average: What the loss is the mean over: all labelled ``"tokens"``, or all ``"samples"`` of their own means.
        gamma: Focus of the loss on samples that are not learnt yet; 0 is plain cross entropy. Only with
            ``average="samples"``; see :class:`~lightning_mtl.losses.TokenCrossEntropy`.
        vocab_size: Number of tokens; None takes the features as logits. Features with another number of channels get a
            linear layer.
        ignore_index: Label of tokens that do not count.
        head: A head, or a callable that builds one from the encoder's features; None gives logits on.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: ``(B, L)`` int64, the token after every input (shifted already), or ``ignore_index``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> task = LanguageModeling()
        >>> task.loss(torch.zeros(1, 3, 2), torch.tensor([[-100, 1, 0]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        average: Literal["tokens", "samples"] = "tokens",
        gamma: float = 0.0,
        vocab_size: int | None = None,
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        self.vocab_size = vocab_size
        self.criterion = TokenCrossEntropy(average, gamma, ignore_index)
        self.metrics = TaskMetrics(
            {
                "accuracy": TokenAccuracy(ignore_index),
                "perplexity": TokenPerplexity(ignore_index),
                "exact_match": SequenceExactMatch(ignore_index),
            },
            shared=[["accuracy", "perplexity", "exact_match"]],
        )

    def build_head(self, spec: FeatureSpec | None) -> None:
        """Build the head for features of this shape, if none was given ready-made."""
        if spec is not None:
            self.out_channels = spec.channels[0] if self.vocab_size is None else self.vocab_size
        super().build_head(spec)

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a head that gives logits on, or a linear layer where the features are none."""
        from lightning_mtl.nn import IdentityHead, TokenHead

        return (IdentityHead if spec.channels[0] == out_channels else TokenHead)(spec, out_channels)

    def update_metrics(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch to ``metrics``, which read the logits."""
        self.metrics.update(prediction, target)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the most likely next token at every position, ``(B, L)``."""
        return prediction.argmax(dim=-1)

    def render(self, value: Tensor) -> Tensor:
        """Return no picture."""
        return nothing_to_draw()
