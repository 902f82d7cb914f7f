"""How sensitive the parts of a network are to the task at hand, and which of them to finetune."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

NORM = "norm"
SelectionRule = Literal["above_mean", "top_k", "budget"]
_NORM_LAYERS = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),  # torch 2.4
)


def default_groups(module: nn.Module, merge_norm: bool = False) -> dict[str, list[str]]:
    """Return one group of trained parameters for every submodule that owns some.

    Args:
        module: The network.
        merge_norm: Put all normalization layers into one group, ``"norm"``.

    Returns:
        Name of the submodule -> names of its parameters, in the order of the network. Parameters of the module itself
        are in the group ``""``. A parameter that several submodules share is in the group of the first.

    Example:
        >>> default_groups(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.ReLU()))
        {'0': ['0.weight'], '1': ['1.weight', '1.bias']}
    """
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    groups: dict[str, list[str]] = {}
    for prefix, child in module.named_modules():
        group = NORM if merge_norm and isinstance(child, _NORM_LAYERS) else prefix
        for name, _ in child.named_parameters(prefix=prefix, recurse=False):
            if name in trained:
                groups.setdefault(group, []).append(name)
    return groups


def match_groups(module: nn.Module, patterns: Sequence[str], owner: str) -> dict[str, list[str]]:
    """Return the groups that patterns name.

    Args:
        module: The network.
        patterns: Each is the name of a submodule, which stands for all below it, a shell pattern of such names
            (``"encoder.*.bn*"``), or ``"norm"`` for all normalization layers.
        owner: Class that asks, for the error.

    Returns:
        Name of the group -> names of its parameters.

    Raises:
        ValueError: If a pattern names no trained parameter.
    """
    groups = default_groups(module)
    kinds = dict(module.named_modules())
    chosen: dict[str, list[str]] = {}
    for pattern in patterns:
        found = [
            name
            for name in groups
            if name == pattern
            or name.startswith(f"{pattern}.")
            or fnmatch.fnmatchcase(name, pattern)
            or (pattern == NORM and isinstance(kinds[name], _NORM_LAYERS))
        ]
        if not found:
            shown = ", ".join(list(groups)[:20])
            raise ValueError(
                f"{owner}: groups must name submodules with trained parameters, {pattern!r} matches none; there are "
                f"{shown}{', ...' if len(groups) > 20 else ''}, and 'norm' for all normalization layers."
            )
        chosen |= {name: groups[name] for name in found}
    return {name: chosen[name] for name in groups if name in chosen}


def module_change(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]] | None = None,
    relative: bool = False,
) -> dict[str, float]:
    r"""Return how much the parameters of every group changed, per parameter (Zhao et al., ICML 2023).

    .. math:: \frac{1}{|\theta_\ell|} \lVert \theta_\ell^{\mathrm{after}} - \theta_\ell^{\mathrm{before}} \rVert_1

    with the parameters :math:`\theta_\ell` of a group and their number :math:`|\theta_\ell|`. Between consecutive
    epochs of a task it is the paper's epoch-wise change, between the same epoch of consecutive tasks its task-wise
    change.

    Args:
        before: Parameter name -> value.
        after: Parameter name -> value, at least those that the groups name.
        groups: Group -> names of parameters; None makes every parameter a group.
        relative: Divide by the mean absolute value before, instead of leaving the scale of the parameters in.

    Raises:
        ValueError: If a name is unknown or a shape differs.

    Example:
        >>> module_change({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([2.0, 2.0])})
        {'a': 0.5}

    References:
        Zhao, Zhou, Long, Jiang, Zhang. *Does Continual Learning Equally Forget All Parameters?* ICML 2023.
        https://arxiv.org/abs/2304.04158, Sec. 3.
    """
    groups = {name: [name] for name in before} if groups is None else groups
    changes = {}
    for group, names in groups.items():
        unknown = [name for name in names if name not in before or name not in after]
        if unknown or not names:
            raise ValueError(
                f"module_change: groups must name parameters of both states, got {list(names)} for group {group!r}, of "
                f"which {unknown} are unknown."
            )
        for name in names:
            if before[name].shape != after[name].shape:
                raise ValueError(
                    f"module_change: {name!r} must have the same shape before and after, got "
                    f"{tuple(before[name].shape)} and {tuple(after[name].shape)}."
                )
        changed = sum(float((_exact(after[name]) - _exact(before[name])).abs().sum()) for name in names)
        count = sum(before[name].numel() for name in names)
        if relative:
            size = sum(float(_exact(before[name]).abs().sum()) for name in names)
            changes[group] = changed / size if size else (0.0 if not changed else float("inf"))
        else:
            changes[group] = changed / count if count else 0.0
    return changes


def _exact(value: Tensor) -> Tensor:
    return value.detach().to("cpu").double()


def gradient_sensitivity(
    gradients: Mapping[str, Tensor | None], groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return the mean absolute gradient of every group, a cheap stand-in while only one task has been seen.

    Args:
        gradients: Parameter name -> gradient of the loss on old samples; None counts as zeros and is left out where the
            whole group has none.
        groups: Group -> names of parameters.

    Example:
        >>> gradient_sensitivity({"a": torch.tensor([1.0, -3.0]), "b": None}, {"x": ["a"], "y": ["b"]})
        {'x': 2.0, 'y': 0.0}
    """
    scores = {}
    for group, names in groups.items():
        known = [gradient for gradient in (gradients[name] for name in names) if gradient is not None]
        count = sum(gradient.numel() for gradient in known)
        scores[group] = sum(float(_exact(gradient).abs().sum()) for gradient in known) / count if count else 0.0
    return scores


def select_groups(
    scores: Mapping[str, float],
    rule: SelectionRule = "above_mean",
    top_k: int | None = None,
    max_param_fraction: float | None = None,
    numel: Mapping[str, int] | None = None,
) -> list[str]:
    """Choose the groups that are most sensitive to the task.

    Args:
        scores: Group -> sensitivity.
        rule: ``"above_mean"`` takes the groups whose score is above the mean over groups, ``"top_k"`` the ``top_k``
            best, ``"budget"`` the best ones while their parameters stay within ``max_param_fraction`` of all.
        top_k: Number of groups for ``"top_k"``.
        max_param_fraction: Share of the parameters for ``"budget"``, in (0, 1].
        numel: Group -> number of parameters, for ``"budget"``.

    Returns:
        Chosen groups in the order of ``scores``; at least one.

    Raises:
        ValueError: If there are no scores, or what the rule needs is missing.

    Example:
        >>> select_groups({"conv": 0.1, "norm": 0.9, "head": 0.8})
        ['norm', 'head']
    """
    if not scores:
        raise ValueError("select_groups: scores must have at least one group, got none.")
    ranked = sorted(scores, key=lambda group: -scores[group])
    if rule == "above_mean":
        mean = sum(scores.values()) / len(scores)
        chosen = {group for group in ranked if scores[group] > mean} or set(ranked)  # all alike
    elif rule == "top_k":
        if top_k is None or not 1 <= top_k <= len(ranked):
            raise ValueError(f"select_groups: top_k must be 1 to {len(ranked)} for rule 'top_k', got {top_k}.")
        chosen = set(ranked[:top_k])
    elif rule == "budget":
        if max_param_fraction is None or not 0 < max_param_fraction <= 1 or numel is None:
            raise ValueError(
                "select_groups: max_param_fraction must be in (0, 1], and numel be given, for rule 'budget', got "
                f"{max_param_fraction} and {numel}."
            )
        allowed = max_param_fraction * sum(numel[group] for group in scores)
        chosen, used = set(), 0
        for group in ranked:
            if used + numel[group] <= allowed:
                chosen.add(group)
                used += numel[group]
        if not chosen:
            raise ValueError(
                f"select_groups: max_param_fraction must leave room for the smallest group, got {max_param_fraction}; "
                f"raise it to {min(numel[group] for group in scores) / sum(numel[group] for group in scores):.3g}."
            )
    else:
        raise ValueError(f"select_groups: rule must be 'above_mean', 'top_k' or 'budget', got {rule!r}.")
    return [group for group in scores if group in chosen]


def snapshot(module: nn.Module, groups: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Return a copy of the parameters in the groups, on the CPU."""
    wanted = {name for names in groups.values() for name in names}
    with torch.no_grad():
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in module.named_parameters()
            if name in wanted
        }
