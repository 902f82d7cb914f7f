"""Any encoder of the package transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from lightning_mtl.nn.encoders.local_models import LocalModel, build_model, model_settings
from lightning_mtl.nn.encoders.lora import LoRA
from lightning_mtl.nn.encoders.text_base import TextEncoder, TextFeatures


class TransformersEncoder(LocalModel, TextEncoder):
    """Encode texts with any model of transformers, as one vector each or as tokens.

    Nothing is ever downloaded: the model is a folder that ``save_pretrained`` wrote (or a name that is already in the
    cache of transformers), or the kind of a model with random weights.

    Args:
        model: Folder of a model, or with ``pretrained=False`` a kind of model such as ``"bert"`` or ``"distilbert"``.
        features: ``"cls"`` for the last state of the first token, ``"mean"`` for the mean over the tokens of a text,
            ``"tokens"`` for the last states of all tokens, those of padding zero.
        pretrained: Load the weights in the folder; otherwise they are drawn at random in the shape that its
            configuration gives.
        config: Entries of the model's configuration to change, such as ``{"hidden_dropout_prob": 0.0}``.
        lora: Train low-rank adapters and keep the model's own weights as they are; None trains all weights.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.

    Shape:
        - inputs: mapping with ``input_ids`` ``(..., L)`` int64 and optional ``attention_mask`` and ``token_type_ids``.
          Returns ``(..., D)``, or ``(..., L, D)`` with ``features="tokens"``.

    Raises:
        ModuleNotFoundError: If transformers is not installed, or peft where ``lora`` is given.
        ValueError: If there is no such model here, a token is not in the vocabulary or a text is too long.

    Note:
        The layer behind BERT's first token that was trained to tell whether sentences follow each other (the
        "pooler") is left out. Of models with a decoder (T5, BART) the encoder is taken. A checkpoint of a module needs
        the folder again to be built, not its weights.

    Example:
        >>> sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> encoder = TransformersEncoder("bert", config={**sizes, "intermediate_size": 32})
        >>> encoder.feature_spec
        FeatureSpec(kind='vector', channels=(16,), strides=())

    References:
        Wolf et al. *Transformers: State-of-the-Art Natural Language Processing*. EMNLP 2020 (demonstrations).
        https://arxiv.org/abs/1910.03771
    """

    def __init__(
        self,
        model: str,
        features: TextFeatures = "cls",
        pretrained: bool = False,
        config: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        settings = model_settings("TransformersEncoder", model, pretrained, config or {})
        self.vocab_size = int(settings.vocab_size)
        self.max_length = _longest(settings)
        self.declare(features, int(settings.hidden_size))
        network: Any = build_model("TransformersEncoder", "AutoModel", model, pretrained, settings)
        if settings.is_encoder_decoder:
            network = network.get_encoder()
        if getattr(network, "pooler", None) is not None:
            network.pooler = None
        self._reads = frozenset(inspect.signature(network.forward).parameters)
        if int(getattr(settings, "type_vocab_size", 0) or 0) < 2:  # RoBERTa has the argument and a single type
            self._reads -= {"token_type_ids"}
        self.hold(network, lora, gradient_checkpointing)

    def encode(self, inputs: Mapping[str, Tensor], real: Tensor) -> Tensor:
        """Return the last state of every token."""
        given = {name: value for name, value in inputs.items() if name in self._reads and name != "attention_mask"}
        found = self.model(**given, attention_mask=real.long(), return_dict=True)
        return cast(Tensor, found.last_hidden_state)


def _longest(settings: Any) -> int | None:
    """Return the number of tokens for which a model has positions, None if it takes any."""
    longest = getattr(settings, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    # RoBERTa and its relatives number the positions from behind that of padding
    shifted = settings.model_type in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text")
    return longest - settings.pad_token_id - 1 if shifted else longest
