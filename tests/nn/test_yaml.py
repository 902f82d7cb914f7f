"""Encoders and heads in a configuration file."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from lightning_mtl.nn import FeatureSpec, FPNHead, LinearHead, TimmEncoder
from tests.nn.cases import MAPS


class Holder:
    """Takes an encoder and a head in the way that modules and tasks do."""

    def __init__(
        self,
        encoder: nn.Module | None = None,
        head: nn.Module | Callable[[FeatureSpec, int], nn.Module] | None = None,
    ) -> None:
        self.encoder = encoder
        self.head = head


def parse(text: str) -> Holder:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name before jsonargparse 4.49
    holder: Holder = build(parser.parse_string(text)).holder
    return holder


def test_head_class_in_yaml_is_called_with_the_features_later() -> None:
    holder = parse(
        """
        holder:
          head:
            class_path: lightning_mtl.nn.FPNHead
            init_args: {pyramid_channels: 64, segmentation_channels: 32}
        """
    )
    assert holder.head is not None
    assert not isinstance(holder.head, nn.Module)
    head = holder.head(MAPS, 7)
    assert isinstance(head, FPNHead)
    assert head.output.out_channels == 7
    assert head.decoder.p5.out_channels == 64


def test_head_without_arguments_in_yaml_needs_only_its_path() -> None:
    holder = parse("holder: {head: lightning_mtl.nn.LinearHead}")
    assert holder.head is not None
    assert isinstance(holder.head(FeatureSpec("vector", (4,)), 2), LinearHead)


def test_encoder_in_yaml_is_built() -> None:
    holder = parse(
        """
        holder:
          encoder:
            class_path: lightning_mtl.nn.TimmEncoder
            init_args: {model_name: vit_tiny_patch16_224, features: maps, img_size: [32, 64], out_indices: [5, 11]}
        """
    )
    assert isinstance(holder.encoder, TimmEncoder)
    assert holder.encoder.feature_spec.channels == (192, 192)


@pytest.mark.parametrize(
    "text",
    [
        "holder: {head: {class_path: lightning_mtl.nn.FPNHead, init_args: {pyramid_chanels: 64}}}",
        "holder: {encoder: {class_path: lightning_mtl.nn.TimmEncoder, init_args: {model: resnet18}}}",
    ],
    ids=["head", "encoder"],
)
def test_misspelt_key_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"pyramid_chanels|model"):
        parse(text)
