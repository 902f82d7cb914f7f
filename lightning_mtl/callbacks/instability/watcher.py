"""See the attention and the output softmaxes of a model that exposes neither."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_mtl.callbacks.instability.attention import (
    HIDING,
    AttentionStatistics,
    attention_statistics,
    is_plain,
    log_partition,
    score_statistics,
)

# what may lie between a product of queries and keys, the softmax, and the product with the values
_ADDING = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__"))
_FILLING = frozenset(("masked_fill", "masked_fill_"))
_REORDERING = frozenset(("transpose", "permute"))
_PASSING = frozenset(
    (
        *(*_ADDING, *_FILLING, *_REORDERING, "where", "sub", "sub_", "__sub__", "mul", "mul_", "multiply", "__mul__"),
        *("__rmul__", "__imul__", "div", "div_", "divide", "true_divide", "__truediv__", "__itruediv__", "tanh"),
        *("clamp", "dropout", "to", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "view"),
        *("reshape", "unsqueeze", "squeeze", "expand", "flatten", "unflatten"),
    )
)
_PRODUCTS = frozenset(("matmul", "bmm", "baddbmm", "einsum", "__matmul__"))
_SOFTMAX = frozenset(("softmax", "_softmax"))


class SoftmaxWatcher:
    """Sees the attention and the output softmaxes of everything that runs while it is on.

    Attention is a call of ``F.scaled_dot_product_attention``, a call inside torch's own transformer layers, or a
    softmax of a product of two activations that is multiplied again. Output logits are what enters a cross entropy or
    a ``log_softmax``. Functions are called with the very arguments that they were called with.

    Args:
        on_attention: Called with the statistics of every attention call; None watches no attention.
        on_logits: Called with the sum of log Z and the number of softmaxes of every output; None watches no output.
        max_queries: Number of queries examined per sequence, all for None.
    """

    def __init__(
        self,
        on_attention: Callable[[AttentionStatistics], None] | None,
        on_logits: Callable[[Tensor, Tensor], None] | None,
        max_queries: int | None,
    ) -> None:
        self.on_attention = on_attention
        self.on_logits = on_logits
        self.max_queries = max_queries
        self.active = False
        self._replaced = False
        self._mode = _WatchingMode(self)
        self._tracked: dict[int, _Tracked] = {}

    def resume(self) -> None:
        """Watch from now on."""
        if not self.active and (self.on_attention is not None or self.on_logits is not None):
            self._mode.__enter__()  # type: ignore[no-untyped-call]
            self.active = True

    def pause(self) -> None:
        """Watch no more; nothing between two pauses is remembered."""
        if self.active:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.active = False
            self._tracked.clear()

    @contextmanager
    def inside_fused_layers(self) -> Iterator[None]:
        """Watch torch's own transformer layers without becoming visible to them.

        In evaluation mode these layers leave their fused path when a function mode is on, which would change the last
        digits of the result; so inside them the functions themselves are replaced instead.
        """
        was_active = self.active
        self.pause()
        try:
            with self.replaced_functions():
                yield
        finally:
            if was_active:
                self.resume()

    @contextmanager
    def replaced_functions(self) -> Iterator[None]:
        """Watch what torch's own transformer layers call by replacing these functions."""
        looks: tuple[tuple[Any, str, Callable[..., None]], ...] = (
            (F, "scaled_dot_product_attention", self.see_fused),
            (F, "softmax", self._see_torch_softmax),
            (torch, "_native_multi_head_attention", self._see_native_attention),
            (torch, "_transformer_encoder_layer_fwd", self._see_native_layer),
        )
        with ExitStack() as stack:
            if self.on_attention is not None and not self._replaced:
                self._replaced = True
                stack.callback(setattr, self, "_replaced", False)
                for owner, name, look in looks:
                    original = getattr(owner, name)
                    setattr(owner, name, _shown(original, look))
                    stack.callback(setattr, owner, name, original)
            yield

    # ------------------------------------------------------------------ what calls mean
    def see(self, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at a finished call of a torch function."""
        if self.on_logits is not None and name in ("cross_entropy", "log_softmax"):
            (self._see_cross_entropy if name == "cross_entropy" else self._see_log_softmax)(*args, **kwargs)
        if self.on_attention is None:
            return
        if name == "scaled_dot_product_attention":
            self.see_fused(*args, **kwargs)
        elif name in _PRODUCTS:
            self._see_product(result, args)
        elif self._tracked and isinstance(result, Tensor):
            if name in _SOFTMAX:
                self._see_softmax(result, *args, **kwargs)
            elif name in _PASSING:
                self._see_passing(name, result, args)

    def see_fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Take the statistics of a call of ``F.scaled_dot_product_attention``."""
        if self.on_attention is not None and is_plain(query):
            self.on_attention(attention_statistics(query, key, attn_mask, is_causal, scale, self.max_queries))

    def _see_product(self, result: Any, args: tuple[Any, ...]) -> None:
        operands = [operand for a in args for operand in (a if isinstance(a, list | tuple) else (a,))]
        operands = [operand for operand in operands if isinstance(operand, Tensor)]
        for operand in operands:
            entry = self._entry(operand)
            if entry is not None and entry.statistics is not None and self.on_attention is not None:
                self.on_attention(entry.statistics)
                del self._tracked[id(operand)]
                return
        activations = not any(isinstance(operand, nn.Parameter) for operand in operands)
        if activations and isinstance(result, Tensor) and result.dim() >= 3 and is_plain(result):
            mask = operands[0] if len(operands) == 3 else None  # baddbmm adds it
            self._tracked[id(result)] = _Tracked(weakref.ref(result), hidden=_hidden_by(mask, result))

    def _see_passing(self, name: str, result: Tensor, args: tuple[Any, ...]) -> None:
        for argument in args:
            entry = self._entry(argument)
            if entry is None:
                continue
            hidden = entry.hidden
            if name in _ADDING:
                for other in args:
                    if other is not argument and isinstance(other, Tensor):
                        hidden = _either(hidden, _hidden_by(other, result))
            elif name in _FILLING and len(args) == 3 and not isinstance(args[2], Tensor) and args[2] <= HIDING:
                hidden = _either(hidden, args[1].detach())
            elif hidden is not None and result.shape != argument.shape:
                same_order = name not in _REORDERING and result.numel() == argument.numel()
                hidden = hidden.expand(argument.shape).reshape(result.shape) if same_order else None
            self._tracked[id(result)] = _Tracked(weakref.ref(result), entry.statistics, hidden)
            return

    def _see_softmax(self, result: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        entry = self._entry(input)
        if entry is not None and entry.statistics is None and dim in (-1, input.dim() - 1):
            found = score_statistics(input, entry.hidden, self.max_queries)
            self._tracked[id(result)] = _Tracked(weakref.ref(result), found)

    def _see_torch_softmax(self, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if self.on_attention is not None and input.dim() >= 3 and is_plain(input):
            self.on_attention(score_statistics(input, max_queries=self.max_queries))

    def _see_native_attention(
        self, query: Tensor, key: Tensor, value: Tensor, dim: int, heads: int, weight: Tensor, bias: Tensor, *rest: Any
    ) -> None:
        mask, kind = rest[2], rest[5] if len(rest) > 5 else None
        self._see_projected(query, heads, weight, bias, mask, kind)

    def _see_native_layer(self, inputs: Tensor, dim: int, heads: int, weight: Tensor, bias: Tensor, *rest: Any) -> None:
        norm_first, eps, norm_weight, norm_bias = rest[3:7]
        mask, kind = rest[13], rest[14]
        with torch.no_grad():
            parts = inputs.unbind() if inputs.is_nested else (inputs,)
            for part in parts:
                states = F.layer_norm(part, (dim,), norm_weight, norm_bias, eps) if norm_first else part
                self._see_projected(states if states.dim() == 3 else states[None], heads, weight, bias, mask, kind)

    def _see_projected(
        self, inputs: Tensor, heads: int, weight: Tensor, bias: Tensor, mask: Tensor | None, kind: int | None
    ) -> None:
        if inputs.is_nested:
            for part in inputs.unbind():
                self._see_projected(part[None], heads, weight, bias, mask, kind)
            return
        dim = inputs.shape[-1]
        with torch.no_grad():
            both = F.linear(inputs, weight[: 2 * dim], bias[: 2 * dim])
            query, key = both.view(*inputs.shape[:2], 2, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask
        if mask is not None and kind == 1:  # one entry per key
            mask = mask.view(mask.shape[0], 1, 1, mask.shape[-1])
        if self.on_attention is not None and is_plain(query):
            self.on_attention(attention_statistics(query, key, mask, max_queries=self.max_queries))

    def _see_cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        *_: Any,
        **__: Any,
    ) -> None:
        if self.on_logits is None or not is_plain(input):
            return
        classes = 1 if input.dim() > 1 else 0
        counted = None if target.is_floating_point() else target != ignore_index
        self.on_logits(*log_partition(input, classes, counted))

    def _see_log_softmax(self, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if self.on_logits is not None and dim is not None and is_plain(input):
            self.on_logits(*log_partition(input, dim))

    def _entry(self, tensor: Any) -> _Tracked | None:
        entry = self._tracked.get(id(tensor))
        return entry if entry is not None and entry.tensor() is tensor else None


@dataclass(frozen=True)
class _Tracked:
    """A tensor on its way from the product of queries and keys to the product with the values.

    Args:
        tensor: The tensor.
        statistics: Statistics of the scores, once it has been through the softmax.
        hidden: Which scores are masked, as far as that was seen.
    """

    tensor: weakref.ref[Tensor]
    statistics: AttentionStatistics | None = None
    hidden: Tensor | None = None


def _hidden_by(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """Return where an added mask hides scores, None if it is no mask."""
    if mask is None or not mask.is_floating_point() or mask.numel() > scores.numel() or not is_plain(mask):
        return None
    return mask.detach() <= HIDING


def _either(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second


class _WatchingMode(TorchFunctionMode):
    """Shows every torch function call to a watcher."""

    def __init__(self, watcher: SoftmaxWatcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":  # composed of functions that a mode does not see
            with self.watcher.replaced_functions():
                return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if name != "__get__":
            self.watcher.see(name, result, args, kwargs)
        return result


def _shown(original: Callable[..., Any], look: Callable[..., None]) -> Callable[..., Any]:
    """Return a function that calls the original and then shows its arguments."""

    def shown(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        look(*args, **kwargs)
        return result

    return shown
