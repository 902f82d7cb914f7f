"""Encoder-decoders of the package transformers: tokens in, logits of the text to write out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.encoders.language_model import check_new_tokens, check_vocabulary
from lightning_mtl.nn.encoders.local_models import LocalModel, build_model, model_settings
from lightning_mtl.nn.encoders.lora import LoRA
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class TransformersSeq2Seq(LocalModel, nn.Module, Recorded):
    """Write texts with any encoder-decoder of transformers, such as BART or T5.

    The features are the logits of the decoder, and all tasks share everything: a
    :class:`~lightning_mtl.tasks.TextToText` task gives them on. Nothing is ever downloaded: the model is a folder that
    ``save_pretrained`` wrote, or the kind of a model with random weights.

    Args:
        model: Folder of a model, or with ``pretrained=False`` a kind of model such as ``"bart"`` or ``"t5"``.
        pretrained: Load the weights in the folder; otherwise they are drawn at random in the shape that its
            configuration gives.
        config: Entries of the model's configuration to change, such as ``{"dropout": 0.0}``.
        decoder_start_token_id: Token with which the decoder begins; None takes what the model's configuration says. T5
            begins with padding, BART with the end token.
        lora: Train low-rank adapters and keep the model's own weights as they are; None trains all weights.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.

    Shape:
        - inputs: mapping with ``input_ids`` ``(B, L)`` and ``decoder_input_ids`` ``(B, T)``, int64, optional
          ``attention_mask`` and ``decoder_attention_mask``. Returns logits ``(B, T, V)``.

    Raises:
        ModuleNotFoundError: If transformers is not installed, or peft where ``lora`` is given.
        ValueError: If there is no such model here, it is no encoder-decoder, neither argument nor configuration says
            with which token the decoder begins, a batch has no ``decoder_input_ids`` or they begin with another token,
            or a token is not in the vocabulary.

    Note:
        A checkpoint of a module needs the folder again to be built, not its weights.

    Example:
        >>> sizes = {"vocab_size": 30, "d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2}
        >>> sizes |= {"num_layers": 1, "num_decoder_layers": 1}
        >>> encoder = TransformersSeq2Seq("t5", config=sizes, decoder_start_token_id=0)
        >>> tokens = torch.tensor([[5, 6, 1]])
        >>> encoder({"input_ids": tokens, "decoder_input_ids": torch.tensor([[0, 7]])}).shape
        torch.Size([1, 2, 30])

    References:
        Lewis et al. *BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation,
        and Comprehension*. ACL 2020. https://arxiv.org/abs/1910.13461
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        config: dict[str, Any] | None = None,
        decoder_start_token_id: int | None = None,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        settings = model_settings("TransformersSeq2Seq", model, pretrained, config or {}, example="bart")
        if not settings.is_encoder_decoder:
            raise ValueError(
                f"TransformersSeq2Seq: model must be an encoder-decoder, got {model!r} of kind {settings.model_type!r}."
            )
        self.vocab_size = int(settings.vocab_size)
        self.feature_spec = FeatureSpec("tokens", (self.vocab_size,))
        network = build_model("TransformersSeq2Seq", "AutoModelForSeq2SeqLM", model, pretrained, settings)
        self.decoder_start_token_id = _start(decoder_start_token_id, model, network)
        self.hold(network, lora, gradient_checkpointing)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the next token of the text to write, at every position of the decoder."""
        self._check(inputs)
        found = self.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            decoder_input_ids=inputs["decoder_input_ids"],
            decoder_attention_mask=inputs.get("decoder_attention_mask"),
            use_cache=False,
            return_dict=True,
        )
        return cast(Tensor, found.logits)

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> Tensor:
        """Return the most likely answer to every text, token by token.

        Args:
            inputs: As for ``forward``; those of the decoder are not read.
            max_new_tokens: Longest answer.

        Returns:
            ``(B, T)`` with ``T <= max_new_tokens``: the tokens up to and with the end token, then padding.
        """
        check_new_tokens("TransformersSeq2Seq", max_new_tokens)
        check_vocabulary("TransformersSeq2Seq", inputs["input_ids"], self.vocab_size)
        network: Any = self.model
        written = network.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs.get("attention_mask"),
            max_new_tokens=max_new_tokens,
            decoder_start_token_id=self.decoder_start_token_id,
            min_length=0,
            num_beams=1,
            do_sample=False,
        )
        return cast(Tensor, written[:, 1:])  # the first is that with which the decoder begins

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        for name in ("input_ids", "decoder_input_ids"):
            if name not in inputs:
                raise ValueError(
                    f"TransformersSeq2Seq: inputs must hold {name!r}, got {sorted(inputs)}; take a data module of "
                    "texts to write for encoder-decoders."
                )
            check_vocabulary("TransformersSeq2Seq", inputs[name], self.vocab_size)
        starts = inputs["decoder_input_ids"][:, 0]
        if starts.device.type == "cpu" and bool((starts != self.decoder_start_token_id).any()):
            raise ValueError(
                "TransformersSeq2Seq: decoder_input_ids must begin with the decoder_start_token_id of the model, "
                f"{self.decoder_start_token_id}, got {sorted(set(starts.tolist()))}; set the start of the data module."
            )


def _start(given: int | None, model: str, network: Any) -> int:
    """Return the token with which the decoder of a model begins."""
    for source in (network.generation_config, network.config):
        if given is None:
            given = getattr(source, "decoder_start_token_id", None)
    if given is None:
        raise ValueError(
            f"TransformersSeq2Seq: decoder_start_token_id must be given for {model!r}, whose configuration has none: "
            "T5 begins with padding, BART with the end token."
        )
    return int(given)
