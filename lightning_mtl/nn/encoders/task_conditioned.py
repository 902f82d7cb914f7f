"""Features that depend on which question is asked about the input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class TaskConditionedEncoder(nn.Module, Recorded):
    r"""Scale the features of an encoder by an embedding of the question that each sample asks.

    .. math:: f = z(x) \odot (1 + e_t)

    with the encoder's features :math:`z(x)` and a learned vector :math:`e_t` for the question :math:`t`. One head can
    then answer all questions, and the question is an input like the image.

    Args:
        encoder: Encoder with pooled features (``feature_spec`` of kind ``"vector"``).
        num_tasks: Number of questions.
        input_key: Name of the encoder's input in a batch.
        task_key: Name of the number of the question in a batch.
        init_std: Standard deviation of the embeddings at first.

    Shape:
        - inputs: a mapping with what the encoder reads and the question ``(B,)`` int64; returns ``(B, D)``.

    Raises:
        ValueError: If the encoder's features are no vectors, or ``num_tasks`` is not positive; in ``forward``, if
            an input is missing.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> encoder = TaskConditionedEncoder(MLPEncoder(8, [4]), num_tasks=3, input_key="row")
        >>> encoder({"row": torch.zeros(2, 8), "task": torch.tensor([0, 2])}).shape
        torch.Size([2, 4])

    References:
        Perez, Strub, de Vries, Dumoulin, Courville. *FiLM: Visual Reasoning with a General Conditioning Layer*. AAAI
        2018. https://arxiv.org/abs/1709.07871 (with a shift, too).
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        input_key: str = "image",
        task_key: str = "task",
        init_std: float = 1.0,
    ) -> None:
        super().__init__()
        spec = getattr(encoder, "feature_spec", None)
        if not isinstance(spec, FeatureSpec) or spec.kind != "vector":
            raise ValueError(
                f"TaskConditionedEncoder: {type(encoder).__name__} must give pooled features (feature_spec of kind "
                f"'vector'), got {spec}; for timm encoders take features='pooled'."
            )
        if num_tasks < 1 or init_std < 0:
            raise ValueError(
                "TaskConditionedEncoder: num_tasks must be positive and init_std not negative, got "
                f"{num_tasks} and {init_std}."
            )
        self.encoder = encoder
        self.input_key = input_key
        self.task_key = task_key
        self.embedding = nn.Embedding(num_tasks, spec.channels[0])
        nn.init.normal_(self.embedding.weight, std=init_std)
        self.feature_spec = spec

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the features of a batch."""
        if missing := [key for key in (self.input_key, self.task_key) if key not in inputs]:
            raise ValueError(f"TaskConditionedEncoder: inputs must hold {missing}, got {list(inputs)}.")
        features: Tensor = self.encoder(inputs[self.input_key])
        scale: Tensor = 1 + self.embedding(inputs[self.task_key])
        return features * scale
