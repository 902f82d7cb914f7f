"""Normalise the queries and keys of attention layers that do not do it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.tiny_decoder import NormName, build_norm

PROJECTIONS = (("q_proj", "k_proj"), ("query", "key"), ("to_q", "to_k"), ("q_lin", "k_lin"), ("wq", "wk"))
"""Names under which attention layers keep their query and key projections."""

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_WIDTHS = ("head_dim", "attention_head_size", "dim_head", "key_value_proj_dim")


class QKNormMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that normalises every head's queries and keys.

    Made from a finished layer, whose parameters it takes over, so that checkpoints of the layer load into it with
    ``strict=False``. It never takes the fused path of torch's transformer layers, which knows no normalisation.

    Args:
        attention: The layer to take over.
        norm: ``"layernorm"`` or ``"rmsnorm"``, with a scale shared by the heads and no bias.
        eps: Added to the variance.

    Raises:
        ValueError: If the layer adds rows to keys and values (``add_bias_kv`` or ``add_zero_attn``).

    References:
        Dehghani et al. *Scaling Vision Transformers to 22 Billion Parameters*. ICML 2023.
        https://arxiv.org/abs/2302.05442, Sec. 2.
    """

    def __init__(self, attention: nn.MultiheadAttention, norm: NormName = "layernorm", eps: float = 1e-6) -> None:
        nn.Module.__init__(self)
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError(
                "QKNormMultiheadAttention: the layer must not add rows to keys and values; build it without "
                "add_bias_kv and add_zero_attn."
            )
        self.__dict__.update({key: value for key, value in attention.__dict__.items() if not key.startswith("_")})
        self._parameters.update(attention._parameters)
        self._modules.update(attention._modules)
        self.separate = not attention._qkv_same_embed_dim
        self._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer from reading the weights past this forward
        self.q_norm = build_norm(norm, attention.head_dim, eps)
        self.k_norm = build_norm(norm, attention.head_dim, eps)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``nn.MultiheadAttention`` does.

        Args:
            query: ``(B, L, E)`` with ``batch_first``, else ``(L, B, E)``, or ``(L, E)``.
            key: The same with S for L.
            value: The same with S for L.
            key_padding_mask: ``(B, S)``; True, or a number to add, at keys that are left out.
            need_weights: Whether to return the attention weights.
            attn_mask: ``(L, S)`` or ``(B * heads, L, S)``; True, or a number to add, at keys that are left out.
            average_attn_weights: Whether to average the returned weights over the heads.
            is_causal: Hint that ``attn_mask`` is the causal mask.

        Returns:
            The attended values in the layout of ``query``, and the weights or None.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = (self._split(states) for states in self._project(query, key, value))
        q, k = self.q_norm(q), self.k_norm(k)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[-2])
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = torch.matmul(q * self.head_dim**-0.5, k.transpose(-2, -1))
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            weights = F.dropout(weights, dropout, self.training)
            attended = torch.matmul(weights, v)
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.separate:
            matrices: Sequence[Tensor | None] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            matrices = cast(Tensor, self.in_proj_weight).chunk(3)
        biases: Sequence[Tensor | None] = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            F.linear(states, cast(Tensor, matrix), bias)
            for states, matrix, bias in zip((query, key, value), matrices, biases, strict=True)
        ]

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, keys: int) -> Tensor | None:
        total: Tensor | None = None
        for mask, shape in ((attn_mask, None), (padding, (query.shape[0], 1, 1, keys))):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask, -torch.inf)
            if shape is not None:
                mask = mask.view(shape)
            elif mask.dim() == 3:
                mask = mask.view(-1, self.num_heads, *mask.shape[1:])
            total = mask.to(query.dtype) if total is None else total + mask.to(query.dtype)
        return total


class QKNormLinear(nn.Linear):
    """A query or key projection that normalises every head of its output.

    Made from a finished layer, whose parameters it takes over.

    Args:
        linear: The layer to take over.
        head_dim: Channels per head.
        norm: ``"layernorm"`` or ``"rmsnorm"``, with a scale shared by the heads and no bias.
        eps: Added to the variance.
    """

    def __init__(self, linear: nn.Linear, head_dim: int, norm: NormName = "layernorm", eps: float = 1e-6) -> None:
        nn.Module.__init__(self)
        if linear.out_features % head_dim:
            raise ValueError(
                f"QKNormLinear: the {linear.out_features} outputs must be a multiple of head_dim, got {head_dim}."
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.head_dim = head_dim
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.norm = build_norm(norm, head_dim, eps)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised queries or keys, heads side by side."""
        states = super().forward(input)
        return cast(Tensor, self.norm(states.reshape(*states.shape[:-1], -1, self.head_dim)).flatten(-2))


def add_qk_norm(
    module: nn.Module, norm: NormName = "layernorm", head_dim: int | None = None, eps: float = 1e-6
) -> list[str]:
    r"""Make every attention layer of a model normalise its queries and keys, in place.

    With unit scale the attention logits are then at most :math:`\sqrt{d_h}` in absolute value (per-head dimension
    :math:`d_h`), whatever the learning rate does to the projections. Call it before the optimizer is made. Known are

    - layers with ``q_norm`` and ``k_norm`` that are the identity, as in timm: these are filled;
    - ``nn.MultiheadAttention``, also inside torch's transformer layers: replaced by :class:`QKNormMultiheadAttention`;
    - layers with separate linear query and key projections, as in transformers (``q_proj``, ``query``, ``to_q``, ...):
      these are replaced by :class:`QKNormLinear`; rotary positions come after them, as they should.

    Args:
        module: The model.
        norm: ``"layernorm"`` (the paper's) or ``"rmsnorm"``, with a scale shared by the heads and no bias.
        head_dim: Channels per head, for layers that do not say it themselves.
        eps: Added to the variance.

    Returns:
        Names of the attention layers that were changed.

    Raises:
        ValueError: If no attention layer is known, or the channels per head of one cannot be found.

    Example:
        >>> layer = nn.TransformerEncoderLayer(d_model=16, nhead=4, batch_first=True)
        >>> add_qk_norm(layer)
        ['self_attn']

    References:
        Dehghani et al. *Scaling Vision Transformers to 22 Billion Parameters*. ICML 2023.
        https://arxiv.org/abs/2302.05442, Sec. 2.
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.1.1.
    """
    changed: list[str] = []
    for name, child in list(module.named_modules()):
        if isinstance(child, QKNormMultiheadAttention):
            continue
        if isinstance(child, nn.MultiheadAttention):
            if child is module:
                raise ValueError(
                    "add_qk_norm: the model must hold the attention layer, not be it; use "
                    "QKNormMultiheadAttention(layer)."
                )
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, QKNormMultiheadAttention(child, norm, eps))
        elif isinstance(getattr(child, "q_norm", None), nn.Identity) and hasattr(child, "k_norm"):
            width = head_dim or _head_dim(name, child, None)
            weight = next(child.parameters())
            child.q_norm = build_norm(norm, width, eps).to(weight.device)
            child.k_norm = build_norm(norm, width, eps).to(weight.device)
        elif (pair := _projections(child)) is not None:
            width = head_dim or _head_dim(name, child, cast(nn.Linear, getattr(child, pair[0])).out_features)
            for attribute in pair:
                linear = cast(nn.Linear, getattr(child, attribute))
                setattr(child, attribute, QKNormLinear(linear, width, norm, eps).to(linear.weight.device))
        else:
            continue
        changed.append(name)
    for encoder in module.modules():
        if isinstance(encoder, nn.TransformerEncoder):  # nested tensors are for the fused path alone
            encoder.use_nested_tensor = False
    if not changed:
        raise ValueError(
            f"add_qk_norm: {type(module).__name__} must hold nn.MultiheadAttention, timm attention, or attention with "
            f"separate linear projections named like one of {[pair[0] for pair in PROJECTIONS]}; build attention that "
            "projects queries, keys and values at once with its own qk_norm option."
        )
    return changed


def _projections(module: nn.Module) -> tuple[str, str] | None:
    for pair in PROJECTIONS:
        found = [getattr(module, name, None) for name in pair]
        if all(isinstance(layer, nn.Linear) and not isinstance(layer, QKNormLinear) for layer in found):
            return pair
    return None


def _head_dim(name: str, module: nn.Module, width: int | None) -> int:
    """Return the channels per head that a layer or its configuration states."""
    for source in (module, getattr(module, "config", None)):
        for attribute in _WIDTHS:
            value: Any = getattr(source, attribute, None)
            if isinstance(value, int):
                return value
    for source in (module, getattr(module, "config", None)):
        for attribute in _HEADS:
            value = getattr(source, attribute, None)
            if isinstance(value, int) and width is not None:
                return width // value
    raise ValueError(
        f"add_qk_norm: the attention layer {name!r} ({type(module).__name__}) says neither its channels per head nor "
        "its number of heads; pass head_dim."
    )
