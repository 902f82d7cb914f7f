"""Settings of low-rank adapters for models of transformers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import nn

from lightning_mtl.nn.recorded import Recorded


@dataclass(frozen=True)
class LoRA(Recorded):
    r"""Train low-rank adapters in place of a model's weights.

    A frozen linear layer :math:`W` gets two small trained matrices and computes
    :math:`W x + \frac{\alpha}{r} B A x`, with :math:`A` of :math:`r` rows and :math:`B`, which starts at zero, of
    :math:`r` columns. The adapters are those of the package peft. Encoders take these settings as ``lora``; the shared
    parameters of the tasks are then the adapters, beside heads that are trained whole.

    Args:
        rank: Rank :math:`r` of the adapters.
        alpha: Scale :math:`\alpha`; the adapters are multiplied by ``alpha / rank``.
        dropout: Probability of dropping an input of an adapter, in [0, 1).
        targets: Last parts of the names of the layers that get adapters, such as ``["query", "value"]``; None takes
            what peft knows of the kind of model, queries and values for most.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        Biases and normalisations stay frozen.

    References:
        Edward Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen. *LoRA:
        Low-Rank Adaptation of Large Language Models*. ICLR 2022. https://arxiv.org/abs/2106.09685
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA: rank must be positive, got {self.rank}.")
        if self.alpha <= 0:
            raise ValueError(f"LoRA: alpha must be positive, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA: dropout must be in [0, 1), got {self.dropout}.")
        if self.targets is not None and not self.targets:
            raise ValueError("LoRA: targets must name at least one layer, got none; None takes the defaults of peft.")
        # a dataclass writes its constructor after Recorded has looked for one
        object.__setattr__(self, "_recorded_arguments", {f.name: getattr(self, f.name) for f in fields(self)})

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze a model of transformers and put adapters into it.

        Args:
            model: The model; its layers are replaced in place.

        Returns:
            The model with adapters, a ``peft.PeftModel``: it is called as the model is, ``merge_and_unload()`` gives
            the model back with the adapters added to its weights.

        Raises:
            ModuleNotFoundError: If peft is not installed.
            ValueError: If ``targets`` names no layer of the model, or must be given for this kind of model.
        """
        try:
            import peft
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("LoRA needs `pip install lightning-mtl[nlp,peft]`.") from error
        # peft writes its scale as an integer, and takes any number
        settings: dict[str, Any] = {"r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        try:
            config = peft.LoraConfig(**settings, target_modules=self.targets)
            with warnings.catch_warnings():  # peft asks a model of transformers 5 by the name of transformers 4
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                return cast(nn.Module, peft.get_peft_model(cast(Any, model), config))
        except ValueError as error:
            linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ValueError(
                f"LoRA: targets={self.targets} does not fit {type(model).__name__}: {error} Its linear layers are "
                f"named {linear}; name some of them."
            ) from error
