"""The tangent kernel of a LightningModule on a few training samples, now and at initialization."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_mtl.callbacks.grokking.undisturbed import undisturbed
from lightning_mtl.functional.kernels import (
    GradientSketch,
    energy_under_inverse,
    gram_of_rows,
    kernel_alignment,
    kernel_distance,
    output_directions,
    output_gradients,
    target_kernel,
)

ForwardFn = Callable[[pl.LightningModule, Any], tuple[Any, Any]]
"""From a module and a batch to its outputs and targets: tensors, or mappings task -> tensor."""

MAX_SAMPLES = 256
_MIN_SAMPLES = 4


class ProbeError(Exception):
    """The kernel of this module cannot be measured; the message says why."""


class ShardedError(ProbeError):
    """Not even its parameters can be looked at: each process has a part of them."""


def default_forward(module: pl.LightningModule, batch: Any) -> tuple[Any, Any]:
    """Return outputs and targets for ``(inputs, targets)`` or, of several sources, ``{name: (inputs, target)}``.

    Outputs are what calling the module gives: a tensor, or a mapping task -> tensor.

    Raises:
        ProbeError: If the batch has another form.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return module(batch[0]), batch[1]
    if isinstance(batch, Mapping) and all(isinstance(part, tuple | list) and len(part) == 2 for part in batch.values()):
        outputs: dict[str, Any] = {}
        targets: dict[str, Any] = {}
        for source, (inputs, target) in batch.items():
            found = module(inputs)
            part = target if isinstance(target, Mapping) else {source: target}
            for name, value in part.items():
                outputs[name] = found[name] if isinstance(found, Mapping) else found
                targets[name] = value
        return outputs, targets
    raise ProbeError(f"a batch should be (inputs, targets), it is a {type(batch).__name__}")


class KernelProbe:
    """Tangent kernels per task on fixed samples, and how far they and the parameters are from the start.

    Args:
        forward: From module and batch to outputs and targets.
        tasks: Names of the outputs to look at; None takes all outputs together as one task named ``all``.
        max_samples: How many samples to keep.
        max_directions: Largest number of backward passes for a sample and task.
        patterns: Which parameters count; None takes all that are trained.
        seed: Seed of the random directions and signs.
    """

    def __init__(
        self,
        forward: ForwardFn,
        tasks: Sequence[str] | None,
        max_samples: int,
        max_directions: int,
        patterns: Sequence[str] | None,
        seed: int,
    ) -> None:
        self.forward = forward
        self.tasks = None if tasks is None else tuple(tasks)
        self.max_samples = max_samples
        self.max_directions = max_directions
        self.patterns = patterns
        self.seed = seed
        self.samples: list[Any] = []
        self.names: list[str] = []
        self.initial_kernels: dict[str, Tensor] = {}
        self.target_kernels: dict[str, Tensor] = {}
        self.initial_parameters: Tensor | None = None
        self.initial_norm = 0.0
        self.initial_step = 0
        self._sketch: GradientSketch | None = None

    @property
    def started(self) -> bool:
        """Whether it is known where the parameters were at the start."""
        return self.initial_parameters is not None

    @property
    def has_kernels(self) -> bool:
        """Whether it is known what the kernels were at the start."""
        return bool(self.initial_kernels)

    # ------------------------------------------------------------------ measuring
    def start_parameters(self, module: nn.Module, step: int) -> None:
        """Record where the parameters are."""
        self.names = [name for name, parameter in module.named_parameters() if self._counts(name, parameter)]
        self.initial_step = step
        self.initial_parameters = self.sketch_of_parameters(module)
        self.initial_norm = float(torch.linalg.vector_norm(self.initial_parameters))

    def start_kernels(self, module: pl.LightningModule, batch: Any) -> None:
        """Keep the first samples of a batch and record the kernels on them.

        Raises:
            ProbeError: If the batch cannot be split into samples, or the module cannot be differentiated on them.
        """
        self.samples = list(_samples(batch, self.max_samples))
        kernels, targets = self._kernels(module)
        for task, kernel in kernels.items():
            if not float(kernel.diagonal().sum()) > 0:
                raise ProbeError(f"the tangent kernel of {task!r} is zero or not finite")
        for task, target in targets.items():
            rows = _stacked(target)
            if rows is not None:
                self.target_kernels[task] = target_kernel(rows).cpu().double()
        self.initial_kernels = kernels

    def initial_measures(self) -> dict[str, dict[str, float]]:
        """Return task -> measure -> value at the start."""
        return self._measures(self.initial_kernels)

    def measure(self, module: pl.LightningModule) -> dict[str, dict[str, float]]:
        """Return task -> measure -> value."""
        return self._measures(self._kernels(module)[0])

    def _measures(self, kernels: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for task, kernel in kernels.items():
            if task not in self.initial_kernels or not kernel.isfinite().all():
                continue
            found[task] = {"kernel_distance": float(kernel_distance(kernel, self.initial_kernels[task]))}
            target = self.target_kernels.get(task)
            if target is not None:
                found[task] |= {
                    "alignment": float(kernel_alignment(kernel, target)),
                    "centred_alignment": float(kernel_alignment(kernel, target, centered=True)),
                    "difficulty": float(energy_under_inverse(kernel, target)),
                }
        return found

    def parameter_distance(self, module: nn.Module) -> float:
        """Return how far the parameters are from where they started, as a share of their initial norm."""
        if self.initial_parameters is None:
            raise RuntimeError("KernelProbe: start_parameters() was not called.")
        moved = torch.linalg.vector_norm(self.sketch_of_parameters(module) - self.initial_parameters)
        return float(moved) / self.initial_norm if self.initial_norm else float("nan")

    def sketch_of_parameters(self, module: nn.Module) -> Tensor:
        """Return the parameters as one vector, sketched if it is long, in float64 on the CPU."""
        with torch.no_grad():
            parameters = self._parameters(module)
            flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
            return self._sketched(flat.to(torch.promote_types(flat.dtype, torch.float32))).cpu().double()

    def _sketched(self, vector: Tensor) -> Tensor:
        if self._sketch is None:
            self._sketch = GradientSketch(len(vector), seed=self.seed)
        return self._sketch(vector)

    def _counts(self, name: str, parameter: Tensor) -> bool:
        return parameter.requires_grad and (self.patterns is None or any(_matches(name, p) for p in self.patterns))

    def _parameters(self, module: nn.Module) -> list[Tensor]:
        named: dict[str, Tensor] = dict(module.named_parameters())
        missing = [name for name in self.names if name not in named]
        if missing:
            raise MisconfigurationException(
                f"GrokkingDetector: the parameters {missing[:3]} that the kernel started with are gone; use a "
                "checkpoint of the same network, or a fresh callback."
            )
        return [named[name] for name in self.names]

    def _kernels(self, module: pl.LightningModule) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
        rows: dict[str, list[Tensor]] = {}
        targets: dict[str, list[Any]] = {}
        directions: dict[int, Tensor] = {}
        with undisturbed(module):
            parameters = self._parameters(module)
            for sample in self.samples:
                outputs, labels = self.forward(module, move_data_to_device(sample, module.device))
                pairs = self._by_task(outputs, labels)
                for index, (task, (output, label)) in enumerate(pairs.items()):
                    last = index + 1 == len(pairs)
                    size = output.numel()
                    if size not in directions:
                        directions[size] = output_directions(size, self.max_directions, self.seed).to(output)
                    gradients = output_gradients(
                        output, parameters, directions[size], self._sketched, keep_graph=not last
                    )
                    rows.setdefault(task, []).append(gradients)
                    targets.setdefault(task, []).append(label)
            complete = {task: found for task, found in rows.items() if len(found) == len(self.samples)}
            kernels = {task: gram_of_rows(torch.stack(found)).cpu().double() for task, found in complete.items()}
        return kernels, targets

    def _by_task(self, outputs: Any, targets: Any) -> dict[str, tuple[Tensor, Any]]:
        """Return task -> output and target of one sample."""
        if self.tasks is None:
            named = outputs if isinstance(outputs, Mapping) else {"all": outputs}
            output = torch.cat([_differentiable(value, name).reshape(-1) for name, value in named.items()])
            return {"all": (output, None if isinstance(targets, Mapping) else targets)}
        if not isinstance(outputs, Mapping):
            raise ProbeError(f"the outputs should map tasks to tensors, they are a {type(outputs).__name__}")
        labels = targets if isinstance(targets, Mapping) else {}
        found = {name: outputs[name] for name in self.tasks if name in outputs}
        if not found:
            raise ProbeError(f"the outputs are named {list(outputs)}, not as the tasks {list(self.tasks)}")
        return {name: (_differentiable(value, name), labels.get(name)) for name, value in found.items()}

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as tensors and plain data."""
        return {
            "samples": move_data_to_device(self.samples, "cpu"),
            "names": self.names,
            "initial_kernels": self.initial_kernels,
            "target_kernels": self.target_kernels,
            "initial_parameters": self.initial_parameters,
            "initial_norm": self.initial_norm,
            "initial_step": self.initial_step,
            "settings": self._settings(),
        }

    def _settings(self) -> list[int]:
        return [self.max_directions, self.seed]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            MisconfigurationException: If it was made with other settings, whose kernels cannot be compared.
        """
        if list(state["settings"]) != self._settings():
            raise MisconfigurationException(
                "GrokkingDetector: kernel_outputs and seed must be those of the checkpoint, "
                f"{list(state['settings'])}, got {self._settings()}."
            )
        for name in ("samples", "names", "initial_norm", "initial_step"):
            setattr(self, name, state[name])
        for name in ("initial_kernels", "target_kernels"):
            setattr(self, name, {task: kernel.cpu() for task, kernel in state[name].items()})
        initial = state["initial_parameters"]
        self.initial_parameters = None if initial is None else initial.cpu()


def check_supported(module: nn.Module, wrapped: nn.Module) -> None:
    """Raise ProbeError if single samples cannot be run through a module, or its parameters are not all here.

    Args:
        module: The LightningModule.
        wrapped: What the Trainer's strategy made of it.
    """
    if any(hasattr(child, "_fsdp_wrapped_module") for child in wrapped.modules()):
        raise ShardedError("its parameters are sharded over processes")
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is None:
            raise ProbeError(f"{name!r} normalises with the batch's own statistics, so single samples mean nothing")
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "placements") or hasattr(parameter, "ds_id"):  # FSDP2, DeepSpeed
            raise ShardedError(f"{name!r} is sharded over processes")
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ProbeError(f"{name!r} is not initialised before the first step")


def check_patterns(module: nn.Module, patterns: Sequence[str] | None) -> None:
    """Raise MisconfigurationException if a pattern names no trained parameter."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for pattern in patterns or ():
        if not any(_matches(name, pattern) for name in names):
            raise MisconfigurationException(
                f"GrokkingDetector: kernel_parameters must name trained parameters or their modules, {pattern!r} "
                f"matches none; there are {list(dict.fromkeys(name.rsplit('.', 1)[0] for name in names))[:12]}."
            )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)


def _samples(batch: Any, count: int) -> Iterator[Any]:
    """Yield the first samples of a batch as batches of one.

    Raises:
        ProbeError: If the tensors of a source differ in length, or there are fewer than four samples.
    """
    if isinstance(batch, Mapping):  # CombinedLoader("max_size") fills exhausted loaders with None
        batch = {name: part for name, part in batch.items() if part is not None}
    sources = batch if isinstance(batch, Mapping) else {"batch": batch}
    lengths: dict[str, int] = {}
    for name, part in sources.items():
        found = {tensor.shape[0] for tensor in _tensors(part) if tensor.ndim}
        if len(found) != 1:
            raise ProbeError(f"the tensors of a batch differ in their first dimension, {sorted(found)}")
        lengths[name] = found.pop()
    smallest = min(lengths.values(), default=0)
    if smallest < _MIN_SAMPLES:
        raise ProbeError(f"a batch should hold at least {_MIN_SAMPLES} samples, it holds {smallest}")
    for index in range(min(count, smallest)):
        yield _row(batch, index)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _row(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index : index + 1].detach().clone() if value.ndim else value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _row(item, index) for key, item in value.items()}
    if isinstance(value, tuple | list):
        rows = [_row(item, index) for item in value]
        return tuple(rows) if isinstance(value, tuple) else rows
    return value


def _differentiable(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ProbeError(f"the output {name!r} should be a tensor, it is a {type(output).__name__}")
    if not output.requires_grad:
        raise ProbeError(f"the output {name!r} does not depend on the parameters in a differentiable way")
    return output


def _stacked(targets: Sequence[Any]) -> Tensor | None:
    """Return the targets of all samples as one tensor, or None if they are not tensors of one shape."""
    if not targets or not all(isinstance(target, Tensor) for target in targets):
        return None
    rows = cast(Sequence[Tensor], targets)
    if len({row.shape for row in rows}) != 1 or rows[0].ndim == 0:
        return None
    return torch.cat(list(rows))
