"""Cut a network into the blocks that statistics are reported for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def find_blocks(root: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the blocks of a network by name, in the order of definition.

    A block is a member of a list of layers (``blocks.0``, ``layer1.1``), unless lists of composed layers lie within it,
    whose members are the blocks then; or a module beside such lists (``patch_embed``, ``norm``, ``head``). Only what
    has parameters is a block.

    Args:
        root: The network.
        patterns: Names of the blocks instead, with shell wildcards such as ``"encoder.layers.*"``.

    Raises:
        MisconfigurationException: If a pattern matches nothing.

    Example:
        >>> net = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.Sequential(*(nn.Bilinear(2, 2, 2),) * 2)})
        >>> list(find_blocks(net))
        ['stem', 'blocks.0']
    """
    if patterns is None:
        return dict(_walk("", root))
    modules = {clean_name(name): module for name, module in root.named_modules() if name}
    return {name: modules[name] for name in match("blocks", patterns, modules)}


def match(argument: str, patterns: Sequence[str], names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return the names that match any of the patterns.

    Raises:
        MisconfigurationException: If a pattern matches nothing.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = [name for name in names if name.count(".") <= 2][:20]
            raise MisconfigurationException(
                f"InstabilityMonitor: {argument} holds {pattern!r}, which matches none of the names, among them "
                f"{shown}; give names of modules, with * for any characters."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def clean_name(name: str) -> str:
    """Return a module's name without the parts that ``torch.compile`` and wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "_fsdp_wrapped_module"))


def _walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    for child_name, child in module.named_children():
        full = clean_name(f"{name}.{child_name}" if name else child_name)
        if id(child) in seen or not any(True for _ in child.parameters()):
            continue
        seen.add(id(child))
        if isinstance(child, _LISTS) or _holds_lists(child, composed=isinstance(module, _LISTS)):
            yield from _walk(full, child)
        else:
            yield full, child


def _holds_lists(module: nn.Module, composed: bool) -> bool:
    """Return whether some list below holds two layers with parameters, or with layers of their own if ``composed``."""
    for child in module.modules():
        if isinstance(child, _LISTS):
            members = [member for member in child.children() if any(True for _ in member.parameters())]
            if len([member for member in members if not composed or any(True for _ in member.children())]) >= 2:
                return True
    return False


def group_parameters(root: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of every block; those outside blocks are grouped under their own module's name.

    A parameter that several modules share counts where it is met first. Parameters that are not trained are left out.

    Args:
        root: The network.
        blocks: Name -> block.
    """
    owner: dict[int, str] = {}
    for name, block in blocks.items():
        for parameter in block.parameters():
            owner.setdefault(id(parameter), name)
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in blocks}
    for name, parameter in root.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(owner.get(id(parameter), clean_name(name)), []).append(parameter)
    return {name: group for name, group in groups.items() if group}
