"""Make the convolutions of a finished network dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from lightning_mtl.nn.dynamic_pruning.layers import DynamicConv, Mode, Normalize

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
_KEEP_ZEROS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d)


class _Place(NamedTuple):
    """A module and where it hangs."""

    parent: nn.Module
    key: str
    name: str
    module: nn.Module


class _Triple(NamedTuple):
    """A convolution with what follows it directly, and the index of the triple that its input comes from."""

    conv: _Place
    norm: _Place
    act: _Place | None
    source: int | None


def convert_to_dynamic(
    model: nn.Module,
    mass: float = 0.9,
    layers: Sequence[str] | None = None,
    mode: Mode = "decoupled",
    prune_ratio: float | None = None,
    embedding: int | None = None,
    normalize: Normalize = "scaled_softmax",
) -> dict[str, DynamicConv]:
    """Put every convolution, batch normalization and activation in a row into one :class:`DynamicConv`, in place.

    Found are rows in ``nn.Sequential`` (VGG, the MobileNets of torchvision, and the like), the ResNets of timm with
    their ``BasicBlock`` and ``Bottleneck``, and its MobileNets with ``DepthwiseSeparableConv``, ``InvertedResidual``
    and ``ConvBnAct``: the last convolution of a block is judged and masked before the shortcut is added. A depthwise
    convolution takes over the mask of the layer that it reads, where there is one. The dynamic convolution takes the
    place of the convolution, an identity that of the two others.

    Args:
        model: The network.
        mass: Share of the peaks to keep, in (0, 1]; negative keeps all.
        layers: Names of the convolutions to convert, as in ``model.named_modules()``; None converts all that are found.
        mode: See :class:`DynamicConv`.
        prune_ratio: See :class:`DynamicConv`.
        embedding: See :class:`MaskPredictor`.
        normalize: See :class:`MaskPredictor`.

    Returns:
        Name -> dynamic convolution.

    Raises:
        ValueError: If nothing is found, a name is unknown, or a layer appears twice in the network.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> list(convert_to_dynamic(model, mass=0.8))
        ['0']

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    if any(isinstance(module, DynamicConv) for module in model.modules()):
        raise ValueError("convert_to_dynamic: model must not have been converted already; convert a fresh one.")
    triples = _triples(model)
    names = [triple.conv.name for triple in triples]
    if not triples:
        raise ValueError(
            f"convert_to_dynamic: {type(model).__name__} must have Conv2d, BatchNorm2d and an activation in a row in "
            "an nn.Sequential, or be a ResNet of timm with BasicBlock or Bottleneck, or a MobileNet of timm, got none "
            "of these; wrap its layers in DynamicConv by hand."
        )
    if layers is not None and (unknown := sorted(set(layers) - set(names))):
        raise ValueError(f"convert_to_dynamic: layers has the unknown names {unknown}; known are {names}.")
    if len({id(triple.conv.module) for triple in triples}) < len(triples):
        raise ValueError("convert_to_dynamic: model must not use one convolution in two places; give each its own.")
    converted: dict[str, DynamicConv] = {}
    for conv, norm, act, source in triples:
        if layers is not None and conv.name not in layers:
            continue
        if not isinstance(conv.module, nn.Conv2d):
            raise ValueError(
                f"convert_to_dynamic: {conv.name} must be a Conv2d, got {type(conv.module).__name__}; leave it out of "
                "layers."
            )
        converted[conv.name] = DynamicConv(
            conv.module,
            norm.module,
            None if act is None else act.module,
            mass,
            mode,
            prune_ratio,
            embedding,
            normalize,
            None if source is None else converted.get(names[source]),
        ).train(conv.module.training)
        setattr(conv.parent, conv.key, converted[conv.name])
        for place in (norm, act):
            if place is not None:
                setattr(place.parent, place.key, nn.Identity())
    return converted


def _triples(model: nn.Module) -> list[_Triple]:
    found: list[_Triple] = []
    _visit(_Place(model, "", "", model), found)
    return found


def _visit(place: _Place, found: list[_Triple]) -> None:
    module = place.module
    if _is_chain(module):
        members = list(_flat(place))
        _scan(members, found)
        for member in members:
            _visit(member, found)
    elif convolutions := _convolutions_of_block(module):
        source = None
        for number in range(1, convolutions + 1):
            act = _child(place, f"act{number}") if number < convolutions else None
            found.append(_Triple(_child(place, f"conv{number}"), _child(place, f"bn{number}"), act, source))
            source = len(found) - 1
            if number < convolutions and not isinstance(getattr(module, "aa", None), nn.Identity | None):
                source = None
    elif _is_timm_mobilenet(module):
        _scan_mobilenet(place, found)
    else:
        children = _children(place)
        stem = [_child(place, key) for key in ("conv1", "bn1", "act1")] if _is_timm_resnet(module) else []
        _scan(stem, found)
        for child in children:
            _visit(child, found)


def _scan(members: list[_Place], found: list[_Triple]) -> None:
    """Find the triples in a row of modules."""
    source: int | None = None
    index = 0
    while index < len(members):
        row = [place.module for place in members[index : index + 3]]
        if (
            len(row) == 3
            and isinstance(row[0], nn.Conv2d)
            and isinstance(row[1], nn.BatchNorm2d)
            and isinstance(row[2], _ACTIVATIONS)
        ):
            conv, norm, act = members[index : index + 3]
            found.append(_Triple(conv, norm, act, source))
            source = len(found) - 1
            index += 3
            continue
        if not isinstance(row[0], _KEEP_ZEROS) and type(row[0]) is not nn.Identity:
            source = None
        index += 1


def _scan_mobilenet(place: _Place, found: list[_Triple]) -> None:
    """Find the convolutions of a MobileNet of timm, whose normalizations hold the activations."""
    from timm.models import _efficientnet_blocks as timm_blocks

    rows = {
        timm_blocks.ConvBnAct: (("conv", "bn1"),),
        timm_blocks.DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
        timm_blocks.InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    }
    act = _child(place, "act1") if hasattr(place.module, "act1") else None
    found.append(_Triple(_child(place, "conv_stem"), _child(place, "bn1"), act, None))
    source: int | None = len(found) - 1
    for block in _flat(_child(place, "blocks")):
        module = block.module
        if type(module) not in rows or getattr(module, "conv_s2d", None) is not None:
            source = None
            continue
        for conv, norm in rows[type(module)]:
            found.append(_Triple(_child(block, conv), _child(block, norm), None, source))
            blurred = conv == "conv_dw" and not isinstance(getattr(module, "aa", None), nn.Identity | None)
            source = None if blurred else len(found) - 1
        if getattr(module, "has_skip", False):
            source = None


def _flat(place: _Place) -> Iterator[_Place]:
    """Yield what a row of modules runs, with the rows inside it taken apart."""
    for child in _children(place):
        if _is_chain(child.module):
            yield from _flat(child)
        else:
            yield child


def _children(place: _Place) -> list[_Place]:
    return [_child(place, key) for key, _ in place.module.named_children()]


def _child(place: _Place, key: str) -> _Place:
    return _Place(place.module, key, f"{place.name}.{key}" if place.name else key, getattr(place.module, key))


def _is_chain(module: nn.Module) -> bool:
    # timm's FeatureDictNet runs its members in a row too
    return isinstance(module, nn.Sequential) or (isinstance(module, nn.ModuleDict) and hasattr(module, "return_layers"))


def _convolutions_of_block(module: nn.Module) -> int:
    """Return how many convolutions a residual block of timm has, 0 for any other module."""
    if not type(module).__module__.startswith("timm."):
        return 0
    from timm.models.resnet import BasicBlock, Bottleneck

    if not isinstance(module, BasicBlock | Bottleneck):
        return 0
    if not isinstance(module.drop_block, nn.Identity):
        raise ValueError(
            "convert_to_dynamic: a residual block must have no drop_block between normalization and activation, got "
            f"{type(module.drop_block).__name__}; build the model without it."
        )
    return 2 if isinstance(module, BasicBlock) else 3


def _is_timm_resnet(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("timm."):
        return False
    from timm.models.resnet import ResNet

    return isinstance(module, ResNet)


def _is_timm_mobilenet(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("timm."):
        return False
    return all(hasattr(module, key) for key in ("conv_stem", "bn1", "blocks"))
