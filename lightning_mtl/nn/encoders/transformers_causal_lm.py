"""Causal language models of the package transformers as encoders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.encoders.language_model import (
    check_new_tokens,
    check_packed_attention,
    check_vocabulary,
    prompt_lengths,
    same_segment,
)
from lightning_mtl.nn.encoders.local_models import LocalModel, build_model, model_settings
from lightning_mtl.nn.encoders.lora import LoRA
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class TransformersCausalLM(LocalModel, nn.Module, Recorded):
    """Any decoder-only language model of transformers, whose features are the logits of the next token.

    All tasks share everything: the head of a :class:`~lightning_mtl.tasks.LanguageModeling` task gives the logits on.
    Nothing is ever downloaded: the model is a folder that ``save_pretrained`` wrote, or the kind of a model with random
    weights. Packed rows are read as by :class:`~lightning_mtl.nn.CausalLanguageModel`.

    Args:
        model: Folder of a model, or with ``pretrained=False`` a kind of model such as ``"gpt2"`` or ``"llama"``.
        pretrained: Load the weights in the folder; otherwise they are drawn at random in the shape that its
            configuration gives.
        config: Entries of the model's configuration to change, such as ``{"attention_dropout": 0.0}``.
        lora: Train low-rank adapters and keep the model's own weights as they are; None trains all weights.
        packed_attention: Whether the samples of a packed row see only themselves (``"separate"``) or also those before
            them (``"joint"``).
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.

    Shape:
        - inputs: mapping with ``input_ids`` ``(B, L)`` int64; optional ``attention_mask`` (padding on the right),
          ``position_ids``, ``segment_ids``; returns ``(B, L, V)``.

    Raises:
        ModuleNotFoundError: If transformers is not installed, or peft where ``lora`` is given.
        ValueError: If there is no such model here, it is an encoder-decoder, takes no positions (for packed rows), or a
            token is not in the vocabulary.

    Note:
        A checkpoint of a module needs the folder again to be built, not its weights. Separate samples are a mask
        ``(B, 1, L, L)``, which the attentions "sdpa" and "eager" of transformers read, not flash attention.

    Example:
        >>> sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        >>> model = TransformersCausalLM("gpt2", config={**sizes, "bos_token_id": 1, "eos_token_id": 2})
        >>> model({"input_ids": torch.tensor([[3, 1, 4]])}).shape
        torch.Size([1, 3, 30])

    References:
        Wolf et al. *Transformers: State-of-the-Art Natural Language Processing*. EMNLP 2020 (demonstrations).
        https://arxiv.org/abs/1910.03771
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        config: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        packed_attention: Literal["separate", "joint"] = "separate",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        name = "TransformersCausalLM"
        check_packed_attention(name, packed_attention)
        settings = model_settings(name, model, pretrained, config or {}, example="gpt2")
        if settings.is_encoder_decoder:
            raise ValueError(f"{name}: model must be a decoder alone, got the encoder-decoder {model!r}.")
        network = build_model(name, "AutoModelForCausalLM", model, pretrained, settings)
        self.vocab_size = int(settings.vocab_size)
        self.packed_attention = packed_attention
        self.feature_spec = FeatureSpec("tokens", (self.vocab_size,))
        self._takes_positions = "position_ids" in inspect.signature(network.forward).parameters
        self.hold(network, lora, gradient_checkpointing)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the next token at every position."""
        ids = inputs["input_ids"]
        check_vocabulary("TransformersCausalLM", ids, self.vocab_size)
        more: dict[str, Tensor | None] = {"attention_mask": inputs.get("attention_mask")}
        segments = inputs.get("segment_ids")
        if segments is not None and self.packed_attention == "separate":
            if not self._takes_positions:
                raise ValueError(
                    "TransformersCausalLM: the model takes no position_ids, so that packed samples cannot be kept "
                    "apart; set packed_attention='joint', or do not pack."
                )
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            seen = same_segment(segments) & causal
            kind = next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
            hidden = torch.zeros(seen.shape, dtype=kind, device=ids.device).masked_fill(~seen, torch.finfo(kind).min)
            more = {"attention_mask": hidden, "position_ids": inputs.get("position_ids")}
        found = self.model(input_ids=ids, **more, use_cache=False, return_dict=True)
        return cast(Tensor, found.logits)

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int) -> Tensor:
        """Return the most likely continuation of every prompt, token by token.

        Args:
            inputs: As for ``forward``, one prompt a row; a row's first ``prompt_length`` tokens where that is given,
                for rows that hold the answer too.
            max_new_tokens: Longest answer.

        Returns:
            ``(B, T)`` with ``T <= max_new_tokens``: the new tokens up to and with the end token, then padding.

        Raises:
            ValueError: If there is no prompt, or padding stands on the left.
        """
        lengths = prompt_lengths("TransformersCausalLM", inputs)
        check_new_tokens("TransformersCausalLM", max_new_tokens)
        width = int(lengths.max())
        # transformers goes on behind the last column, so the prompts move there
        places = torch.arange(width, device=lengths.device) - (width - lengths).unsqueeze(1)
        tokens = inputs["input_ids"].gather(1, places.clamp(min=0))
        network: Any = self.model
        config = network.generation_config
        ends = config.eos_token_id
        pad = config.pad_token_id
        if pad is None:
            pad = ends[0] if isinstance(ends, list) else 0 if ends is None else ends
        written = network.generate(
            input_ids=tokens,
            attention_mask=(places >= 0).long(),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            num_beams=1,
            do_sample=False,
        )
        return cast(Tensor, written[:, width:])
