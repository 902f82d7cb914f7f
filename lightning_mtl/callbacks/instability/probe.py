"""Watch the forward passes of one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_mtl.callbacks.instability.attention import AttentionStatistics, is_plain, log_partition
from lightning_mtl.callbacks.instability.blocks import clean_name
from lightning_mtl.callbacks.instability.watcher import SoftmaxWatcher
from lightning_mtl.functional.second_pass import RandomState, second_pass

_FUSED_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class ForwardProbe:
    """Collects what the forward passes of a training step show, through hooks that are there only for that step.

    In a light pass the sum over every block's output is kept, which tells whether it is finite. In a full pass also the
    mean square of every block's output, the attention and the output softmaxes.

    A module compiled with ``torch.compile`` runs as it is, since neither hooks nor function modes may enter its graph;
    in a full pass it is run a second time, uncompiled and without gradients, on the same inputs and random numbers.

    Args:
        root: The LightningModule.
        blocks: Name -> block.
        activations: Whether to take the mean square of the blocks' outputs.
        attention: Whether to watch attention: None for none, else patterns of names, or an empty list for all.
        logits: Whose outputs are logits: None for none, ``"auto"`` for what enters a cross entropy or log-softmax, else
            names of modules.
        max_queries: Number of queries examined per sequence.
        keep_inputs: Whether to keep the inputs of the blocks until :meth:`forget_inputs`, for :meth:`locate`.
    """

    def __init__(
        self,
        root: nn.Module,
        blocks: Mapping[str, nn.Module],
        activations: bool,
        attention: Sequence[str] | None,
        logits: str | Sequence[str] | None,
        max_queries: int | None,
        keep_inputs: bool,
    ) -> None:
        self.root = root
        self.blocks = blocks
        self.activations = activations
        self.attention = attention
        self.logits = logits
        self.keep_inputs = keep_inputs
        self.outputs: list[tuple[str, Tensor]] = []
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self.mean_squares: dict[str, list[tuple[Tensor, int]]] = {}
        self.attentions: dict[str, list[AttentionStatistics]] = {}
        self.log_zs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.whole_is_compiled = getattr(root, "_compiler_ctx", None) is not None
        self.watcher = SoftmaxWatcher(
            None if attention is None else self._on_attention,
            self._on_logits if logits == "auto" else None,
            max_queries,
        )
        self._full = False
        self._in_backward = False
        self._replaying = False
        self._stack: list[str] = []
        self._undo: list[Callable[[], None]] = []
        self._unnamed = 0
        self._inside: set[int] | None = None
        self._checked = dict(blocks)

    # ------------------------------------------------------------------ one training step
    def start(self, full: bool) -> None:
        """Install the hooks for a training step; several for one step of the optimizer add up."""
        self.stop()
        self._full = full
        self._stack, self._in_backward, self._unnamed = [], False, 0
        if self.whole_is_compiled:
            return
        if full:
            self._install_full(self.root, "")
            self.watcher.resume()
        else:
            inside = self._inside_compiled()
            for name, block in self._checked.items():
                if id(block) not in inside and not _avoids_hooks(block):
                    self._on_block(name, block)

    def begin_backward(self) -> None:
        """Stop watching; recomputed activations are no new ones."""
        self.watcher.pause()
        self._in_backward = True

    def end_backward(self) -> None:
        """Let the next forward pass of this training step be watched again."""
        self._in_backward = False

    def stop(self) -> None:
        """Remove the hooks; what was collected stays."""
        self.watcher.pause()
        while self._undo:
            self._undo.pop()()
        self._full = False

    def clear(self) -> None:
        """Forget what was collected."""
        self.outputs, self.mean_squares, self.attentions, self.log_zs = [], {}, {}, {}
        self.forget_inputs()

    def add_logits(self, found: Any) -> None:
        """Take logits, or ``{name: logits}``, that no hook has seen."""
        named = found if isinstance(found, Mapping) else {"output": found}
        for name, logits in named.items():
            self.log_zs.setdefault(str(name), []).append(log_partition(logits, class_dimension(logits)))

    def forget_inputs(self) -> None:
        """Let go of the inputs of the blocks."""
        self.inputs = {}

    # ------------------------------------------------------------------ hooks
    def _inside_compiled(self) -> set[int]:
        """Return the ids of the modules that only compiled code calls; looked up again in every full pass."""
        if self._inside is None or self._full:
            self._inside = set()
            self._checked = dict(self.blocks)
            for name, module in self.root.named_modules():
                if _original(module) is not None:
                    self._inside.update(id(child) for child in _original(module).modules())
                    self._checked[clean_name(name)] = module
                elif _compiled_in_place(module):
                    self._inside.update(id(child) for child in module.modules())
        return self._inside

    def _install_full(self, root: nn.Module, prefix: str) -> None:
        inside = set() if self._replaying else self._inside_compiled()
        names_of_blocks = {id(block): name for name, block in self._checked.items()}
        avoided: set[int] = set()
        for local, module in root.named_modules():
            name = clean_name(f"{prefix}.{local}" if prefix and local else prefix or local)
            if module is self.root:
                continue
            if id(module) in inside:
                if _compiled_in_place(module):
                    self._replay_after_compiled_call(name, module)
                continue
            if isinstance(module, _FUSED_LAYERS) and not module.training and self.attention is not None:
                self._enter_around(name, module)
            if _avoids_hooks(module):
                avoided.update(id(child) for child in module.modules())
            if id(module) in avoided or isinstance(module, torch.jit.ScriptModule):
                continue
            self._on_name(name, module)
            if id(module) in names_of_blocks:
                self._on_block(names_of_blocks[id(module)], module)
            if not isinstance(self.logits, str | None) and name in self.logits:
                self._keep(module.register_forward_hook(self._logits_hook(name)))
            if _original(module) is not None and not self._replaying:
                self._replay_after(name, module)

    def _keep(self, handle: RemovableHandle) -> None:
        self._undo.append(handle.remove)

    def _on_name(self, name: str, module: nn.Module) -> None:
        def enter(_: nn.Module, __: Any) -> None:
            if not self._in_backward:
                if not self.watcher.active and not self._replaying:
                    self.watcher.resume()  # another forward pass, in manual optimization
                self._stack.append(name)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            while self._stack and self._stack.pop() != name:
                pass

        self._keep(module.register_forward_pre_hook(enter))
        self._keep(module.register_forward_hook(leave))

    def _on_block(self, name: str, module: nn.Module) -> None:
        def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._in_backward:
                return
            tensors = [tensor.detach() for tensor in floating_tensors(output) if is_plain(tensor)]
            for tensor in tensors:
                self.outputs.append((name, tensor.sum(dtype=_float_for(tensor))))
            if self._full and self.activations and tensors:
                norm = torch.linalg.vector_norm(tensors[0], dtype=_float_for(tensors[0]))
                self.mean_squares.setdefault(name, []).append((norm.square(), tensors[0].numel()))
            if self.keep_inputs and torch.is_grad_enabled():
                self.inputs[name] = (args, kwargs)

        self._keep(module.register_forward_hook(look, with_kwargs=True))

    def _logits_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not self._in_backward:
                for tensor in floating_tensors(output):
                    if is_plain(tensor):
                        self.log_zs.setdefault(name, []).append(log_partition(tensor, class_dimension(tensor)))

        return look

    def _enter_around(self, name: str, module: nn.Module) -> None:
        """Watch one of torch's fused layers; a hook would make it leave its fused path."""
        original, own = module.forward, "forward" in module.__dict__
        name = f"{name}.self_attn" if isinstance(module, nn.TransformerEncoderLayer) else name

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._in_backward:
                return original(*args, **kwargs)
            self._stack.append(name)
            try:
                with self.watcher.inside_fused_layers():
                    return original(*args, **kwargs)
            finally:
                while self._stack and self._stack.pop() != name:
                    pass

        module.forward = forward
        self._undo.append(lambda: setattr(module, "forward", original) if own else delattr(module, "forward"))

    # ------------------------------------------------------------------ compiled modules
    def _replay_after(self, name: str, module: nn.Module) -> None:
        """Run an ``OptimizedModule`` a second time uncompiled, after each of its calls."""
        states: list[tuple[RandomState, bool]] = []

        def before(_: nn.Module, __: Any) -> None:
            if not self._in_backward:
                states.append((RandomState.now(), self.watcher.active))
                self.watcher.pause()

        def after(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
            if states:
                state, was_active = states.pop()
                self._replay(name, _original(module), _original(module), args, kwargs, state)
                if was_active:
                    self.watcher.resume()

        self._keep(module.register_forward_pre_hook(before))
        self._keep(module.register_forward_hook(after, with_kwargs=True))

    def _replay_after_compiled_call(self, name: str, module: nn.Module) -> None:
        """Do the same for a module on which ``module.compile()`` was called."""
        compiled: Any = module._compiled_call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._in_backward:
                return compiled(*args, **kwargs)
            state, was_active = RandomState.now(), self.watcher.active
            self.watcher.pause()
            output = compiled(*args, **kwargs)
            self._replay(name, module, module._call_impl, args, kwargs, state)
            if was_active:
                self.watcher.resume()
            return output

        module._compiled_call_impl = call
        self._undo.append(lambda: setattr(module, "_compiled_call_impl", compiled))

    def _replay(
        self, name: str, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any, state: RandomState
    ) -> None:
        if self._replaying:
            return
        kept, self._undo, self._replaying = self._undo, [], True
        try:
            with torch.no_grad(), undisturbed(module, state):
                self._install_full(module, name)
                self.watcher.resume()
                call(*args, **kwargs)
        finally:
            self.watcher.pause()
            while self._undo:
                self._undo.pop()()
            self._undo, self._replaying = kept, False

    # ------------------------------------------------------------------ the first non-finite output
    def locate(self, name: str) -> str:
        """Run a block again and return the name of the layer in it whose output is the first non-finite one.

        Returns the name of the block where the inputs were not kept or the second run stays finite.
        """
        if name not in self.inputs:
            return name
        block = _original(self._checked[name]) or self._checked[name]
        args, kwargs = self.inputs[name]
        found: list[str] = []
        handles = []
        for local, module in block.named_modules():
            if not local or _avoids_hooks(module):
                continue

            def look(_: nn.Module, __: Any, output: Any, layer: str = clean_name(f"{name}.{local}")) -> None:
                if not all(bool(tensor.isfinite().all()) for tensor in floating_tensors(output)):
                    found.append(layer)

            handles.append(module.register_forward_hook(look))
        try:
            with torch.no_grad(), undisturbed(block, RandomState.now()):
                block(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else name

    def inputs_are_finite(self, name: str) -> bool:
        """Return whether a block was given finite inputs, True where they were not kept."""
        return all(bool(tensor.isfinite().all()) for tensor in floating_tensors(self.inputs.get(name, ())))

    # ------------------------------------------------------------------ what the watcher found
    def _on_attention(self, statistics: AttentionStatistics) -> None:
        name = self._stack[-1] if self._stack else "attention"
        if not self.attention or any(fnmatchcase(name, pattern) for pattern in self.attention):
            self.attentions.setdefault(name, []).append(statistics)

    def _on_logits(self, total: Tensor, count: Tensor) -> None:
        name = self._stack[-1] if self._stack else f"output{f'.{self._unnamed}' if self._unnamed else ''}"
        self._unnamed += not self._stack
        self.log_zs.setdefault(name, []).append((total, count))


@contextmanager
def undisturbed(module: nn.Module, state: RandomState) -> Iterator[None]:
    """Run a module again such that buffers, running statistics and random states are afterwards as before."""
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers()]
    with second_pass(module, state):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output, however it is nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from floating_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from floating_tensors(item)


def class_dimension(logits: Tensor) -> int:
    """Return where the classes of logits are: last in ``(B, C)`` and ``(B, L, V)``, second in ``(B, C, H, W)``."""
    return -1 if logits.dim() <= 3 else 1


def _float_for(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _avoids_hooks(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerEncoderLayer) and not module.training


def _original(module: nn.Module) -> Any:
    """Return what ``torch.compile`` wrapped, None for any other module."""
    return module._modules.get("_orig_mod")


def _compiled_in_place(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None
