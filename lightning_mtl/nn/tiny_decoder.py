"""A small decoder-only Transformer for studies that train in seconds."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec

NormName = Literal["layernorm", "rmsnorm"]

_ROPE_BASE = 10_000.0
_TRUNCATED_STD = 0.879625661034  # standard deviation of a unit normal cut at 2


def build_norm(name: NormName, dim: int, eps: float = 1e-6) -> nn.Module:
    """Return a normalisation of the last dimension with a scale and no bias.

    Args:
        name: ``"layernorm"`` or ``"rmsnorm"``.
        dim: Size of the last dimension.
        eps: Added to the variance.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "layernorm":
        return nn.LayerNorm(dim, eps=eps, bias=False)
    if name == "rmsnorm":
        return nn.RMSNorm(dim, eps=eps)
    raise ValueError(f"build_norm: name must be 'layernorm' or 'rmsnorm', got {name!r}.")


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels by angles that grow with the position (rotary position embedding).

    Args:
        states: Queries or keys.
        cos: Cosines of the angles.
        sin: Sines of the angles.

    Shape:
        - states: ``(..., L, D)``; channel ``i`` is paired with ``i + D / 2``.
        - cos, sin: ``(L, D / 2)``, or with leading dimensions that fit.

    References:
        Su, Lu, Pan, Murtadha, Wen, Liu. *RoFormer: Enhanced Transformer with Rotary Position Embedding*. 2021.
        https://arxiv.org/abs/2104.09864
    """
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class DecoderAttention(nn.Module):
    """Multi-head self-attention through ``F.scaled_dot_product_attention``.

    Args:
        dim: Width.
        num_heads: Number of heads.
        qk_norm: Normalisation of every head's queries and keys, with one scale shared by the heads; None for none.
        causal: Whether a position sees only itself and earlier ones.
        dropout: Probability of dropping an attention weight.
        eps: Added to the variance in the normalisation.

    Shape:
        - inputs: ``(B, L, D)``; returns the same.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_norm: NormName | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm = nn.Identity() if qk_norm is None else build_norm(qk_norm, self.head_dim, eps)
        self.k_norm = nn.Identity() if qk_norm is None else build_norm(qk_norm, self.head_dim, eps)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the attended values.

        Args:
            inputs: ``(B, L, D)``.
            rotation: Cosines and sines of rotary positions.
            mask: Boolean, broadcast to ``(B, num_heads, L, L)``, true where a row may see a column. It is joined with
                the causal order where there is one.
        """
        batch, length, dim = inputs.shape
        qkv = self.qkv(inputs).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if mask is not None and self.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=self.causal and mask is None
        )
        return cast(Tensor, self.proj(attended.transpose(1, 2).reshape(batch, length, dim)))


class DecoderBlock(nn.Module):
    """Pre-norm attention and a two-layer GELU network, each added to its input.

    Args:
        dim: Width.
        num_heads: Number of heads.
        mlp_ratio: Hidden width of the network over ``dim``.
        qk_norm: Normalisation of queries and keys, None for none.
        norm: Normalisation of the blocks' inputs.
        causal: Whether a position sees only itself and earlier ones.
        dropout: Probability of dropping an attention weight or a value that is added to the residual stream.
        eps: Added to the variance in the normalisations.

    Shape:
        - inputs: ``(B, L, D)``; returns the same.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: NormName | None = None,
        norm: NormName = "layernorm",
        causal: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.norm1 = build_norm(norm, dim, eps)
        self.attn = DecoderAttention(dim, num_heads, qk_norm, causal, dropout, eps)
        self.norm2 = build_norm(norm, dim, eps)
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after the block; ``mask`` as in :class:`DecoderAttention`."""
        states = inputs + self.drop(self.attn(self.norm1(inputs), rotation, mask))
        return cast(Tensor, states + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(states))))))


class TinyDecoder(nn.Module, Recorded):
    r"""A decoder-only Transformer: embedding, pre-norm blocks, final norm, head; no biases.

    Weights start as in the study of small-scale proxies: embeddings from :math:`N(0, 1/D)`, all others from a normal
    cut at two standard deviations with standard deviation :math:`1/\sqrt{\text{fan-in}}`.

    Args:
        vocab_size: Number of tokens V.
        dim: Width D, a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: Hidden width of the feed-forward networks over ``dim``.
        qk_norm: Normalise every head's queries and keys, which bounds the attention logits; None for none.
        norm: Normalisation in the blocks and before the head.
        positions: ``"rope"`` rotates queries and keys, ``"learned"`` adds an embedding, ``"none"`` leaves only the
            causal mask to tell positions apart.
        max_length: Longest sequence.
        tie_head: Whether the head uses the embedding's weights.
        head: Whether to return logits; otherwise the features after the final norm.
        causal: Whether a position sees only itself and earlier ones.
        dropout: Probability of dropping an embedding, an attention weight or a value added to the residual stream.
        eps: Added to the variance in the normalisations.

    Shape:
        - tokens: ``(B, L)`` int64; returns logits ``(B, L, V)``, or features ``(B, L, D)`` without a head.

    Raises:
        ValueError: If an argument is out of range, or a sequence is longer than ``max_length``.

    Example:
        >>> model = TinyDecoder(vocab_size=32, dim=32, depth=2, num_heads=2)
        >>> model(torch.zeros(1, 5, dtype=torch.long)).shape, model.num_parameters()
        (torch.Size([1, 5, 32]), 24800)

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 2.1.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 32,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: NormName | None = "layernorm",
        norm: NormName = "layernorm",
        positions: Literal["rope", "learned", "none"] = "rope",
        max_length: int = 512,
        tie_head: bool = False,
        head: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "dim": dim, "depth": depth, "num_heads": num_heads, "max_length": max_length}
        for argument, value in sizes.items():
            if value < 1:
                raise ValueError(f"TinyDecoder: {argument} must be positive, got {value}.")
        if dim % num_heads:
            raise ValueError(f"TinyDecoder: dim must be a multiple of num_heads={num_heads}, got {dim}.")
        if positions not in ("rope", "learned", "none"):
            raise ValueError(f"TinyDecoder: positions must be 'rope', 'learned' or 'none', got {positions!r}.")
        if positions == "rope" and (dim // num_heads) % 2:
            raise ValueError(
                f"TinyDecoder: rotary positions need an even number of channels per head, got {dim // num_heads}; "
                "change dim or num_heads, or set positions='learned'."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"TinyDecoder: dropout must be in [0, 1), got {dropout}.")
        if tie_head and not head:
            raise ValueError("TinyDecoder: tie_head=True needs a head; set head=True or tie_head=False.")
        self.max_length = max_length
        self.feature_spec = FeatureSpec("tokens", (dim,))
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_length, dim) if positions == "learned" else None
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, num_heads, mlp_ratio, qk_norm, norm, causal, dropout, eps) for _ in range(depth)
        )
        self.norm = build_norm(norm, dim, eps)
        self.head = nn.Linear(dim, vocab_size, bias=False) if head else None
        self.reset_parameters()
        if tie_head and self.head is not None:
            self.head.weight = self.embedding.weight
        self._rotary = positions == "rope"
        if self._rotary:
            half = dim // num_heads // 2
            angles = torch.outer(torch.arange(max_length).float(), _ROPE_BASE ** (-torch.arange(half) / half))
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            elif isinstance(module, nn.Linear):
                std = module.in_features**-0.5 / _TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)

    def num_parameters(self) -> int:
        """Return the number of parameters without embeddings and head, as scaling studies count them."""
        left_out = {id(p) for part in (self.embedding, self.positions, self.head) if part for p in part.parameters()}
        return sum(parameter.numel() for parameter in self.parameters() if id(parameter) not in left_out)

    def features(
        self,
        tokens: Tensor,
        position_ids: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """Return what the head reads.

        Args:
            tokens: ``(B, L)``.
            position_ids: ``(B, L)``, position of every token, 0, 1, 2, ... by default.
            mask: Who may see whom, as in :class:`DecoderAttention`.
            added: What is added to the embeddings, in a shape that fits ``(B, L, D)``.

        Returns:
            ``(B, L, D)``.
        """
        length = tokens.shape[-1]
        if length > self.max_length:
            raise ValueError(
                f"TinyDecoder: a sequence must have at most max_length={self.max_length} tokens, got {length}; "
                "raise max_length."
            )
        states = self.embedding(tokens)
        where: slice | Tensor = slice(length) if position_ids is None else position_ids
        if self.positions is not None:
            states = states + self.positions.weight[where]
        if added is not None:
            states = states + added
        states = self.drop(states)
        rotation = None
        if self._rotary:
            cos, sin = cast(Tensor, self.cos)[where], cast(Tensor, self.sin)[where]
            rotation = (cos, sin) if position_ids is None else (cos.unsqueeze(1), sin.unsqueeze(1))  # one for all heads
        for block in self.blocks:
            states = block(states, rotation, mask)
        return cast(Tensor, self.norm(states))

    def forward(self, tokens: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the logits of the next token at every position, or the features without a head."""
        states = self.features(tokens, position_ids, mask)
        return states if self.head is None else cast(Tensor, self.head(states))

    @torch.no_grad()
    def generate(self, tokens: Tensor, num_tokens: int, temperature: float = 1.0) -> Tensor:
        """Append sampled tokens.

        Args:
            tokens: ``(B, L)``, at least one token each.
            num_tokens: How many to append.
            temperature: Divides the logits; 0 takes the most likely token.

        Returns:
            ``(B, L + num_tokens)``. The random numbers come from torch's global generator.

        Raises:
            ValueError: If there is no head, or the temperature is negative.
        """
        if self.head is None:
            raise ValueError("TinyDecoder: generate needs a head; set head=True.")
        if temperature < 0:
            raise ValueError(f"TinyDecoder: temperature must not be negative, got {temperature}.")
        for _ in range(num_tokens):
            logits = self(tokens[:, -self.max_length :])[:, -1]
            if temperature == 0:
                chosen = logits.argmax(dim=-1, keepdim=True)
            else:
                chosen = torch.multinomial((logits.float() / temperature).softmax(dim=-1), 1)
            tokens = torch.cat((tokens, chosen), dim=1)
        return tokens
