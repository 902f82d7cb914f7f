"""What is special about single heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn import (
    ConvHead,
    DeepLabV3PlusHead,
    FeatureSpec,
    FPNHead,
    LinearHead,
    MLPHead,
    PooledHead,
    TimmEncoder,
    UNetHead,
)
from tests.nn.cases import DILATED, FLAT, MAPS, TOKENS, VECTOR, features


@pytest.mark.parametrize("head", [LinearHead, MLPHead])
@pytest.mark.parametrize(("spec", "fitting"), [(MAPS, "ConvHead, FPNHead, UNetHead"), (TOKENS, "PooledHead")])
def test_vector_head_on_other_features_names_the_heads_that_fit(
    head: type[nn.Module], spec: FeatureSpec, fitting: str
) -> None:
    with pytest.raises(
        ValueError, match=f"{head.__name__}: features must be of kind 'vector'.*heads that fit: {fitting}"
    ):
        head(spec, 3)


@pytest.mark.parametrize("head", [ConvHead, FPNHead, UNetHead, DeepLabV3PlusHead])
def test_dense_head_on_a_vector_names_the_heads_that_fit(head: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{head.__name__}: .* got 'vector'; heads that fit: LinearHead, MLPHead"):
        head(VECTOR, 3)


def test_pooled_head_reads_the_mean_of_the_coarsest_map() -> None:
    head = PooledHead(MAPS, 3)
    maps = features(MAPS, 2)
    vector_head = PooledHead(FeatureSpec("vector", (12,)), 3)
    vector_head.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(maps), vector_head(maps[-1].mean(dim=(-2, -1))))


def test_pooled_head_reads_the_mean_token() -> None:
    head = PooledHead(TOKENS, 3)
    tokens = features(TOKENS, 2)
    torch.testing.assert_close(head(tokens), head.layers(tokens.mean(dim=1)))


@pytest.mark.parametrize("size", [36, 40])
def test_unet_head_takes_images_of_any_size(size: int) -> None:
    sizes = [18, 9, 5, 3, 2] if size == 36 else [20, 10, 5, 3, 2]
    maps = [torch.randn(1, c, s, s) for c, s in zip(MAPS.channels, sizes, strict=True)]
    assert UNetHead(MAPS, 3)(maps).shape == (1, 3, sizes[0], sizes[0])


@pytest.mark.parametrize(("head", "spec"), [(FPNHead, MAPS), (DeepLabV3PlusHead, DILATED)])
def test_image_size_that_does_not_fit_the_strides_raises(head: type[nn.Module], spec: FeatureSpec) -> None:
    maps = [torch.randn(2, c, -(-72 // s), -(-72 // s)) for c, s in zip(spec.channels, spec.strides, strict=True)]
    with pytest.raises(ValueError, match=f"height and width of the input must be multiples of {spec.strides[-1]}"):
        head(spec, 3)(maps)


def test_fpn_head_on_maps_of_one_stride_raises() -> None:
    with pytest.raises(ValueError, match=r"strides that double, got strides \(16, 16, 16\); use ConvHead or UNetHead"):
        FPNHead(FLAT, 3)


def test_fpn_head_refuses_a_width_that_its_group_norm_cannot_take() -> None:
    with pytest.raises(ValueError, match="segmentation_channels must be a multiple of 32, got 48"):
        FPNHead(MAPS, 3, segmentation_channels=48)


def test_unet_head_refuses_a_wrong_number_of_widths() -> None:
    with pytest.raises(ValueError, match=r"decoder_channels must be 4 positive widths for 5 maps, got \[16, 8\]"):
        UNetHead(MAPS, 3, decoder_channels=[16, 8])


def test_unet_head_refuses_a_single_map() -> None:
    with pytest.raises(ValueError, match="at least two maps, got one; use ConvHead"):
        UNetHead(FeatureSpec("maps", (8,), (16,)), 3)


def test_deeplab_head_asks_for_a_dilated_encoder() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 4, 8, 16, 32\); build the encoder with output_stride=16"):
        DeepLabV3PlusHead(MAPS, 3)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_head_fits_a_dilated_encoder(output_stride: int) -> None:
    encoder = TimmEncoder("resnet18", "maps", output_stride=output_stride)  # type: ignore[arg-type]
    head = DeepLabV3PlusHead(encoder.feature_spec, 3, decoder_channels=16).eval()
    assert head(encoder(torch.randn(1, 3, 64, 64))).shape == (1, 3, 16, 16)


def test_deeplab_head_doubles_its_rates_at_stride_8() -> None:
    def rates(spec: FeatureSpec) -> list[int]:
        head = DeepLabV3PlusHead(spec, 3, decoder_channels=16)
        return [m.dilation[0] for m in head.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]

    assert rates(DILATED) == [6, 12, 18]
    assert rates(FeatureSpec("maps", (4, 8), (4, 8))) == [12, 24, 36]


def test_deeplab_head_refuses_two_rates() -> None:
    with pytest.raises(ValueError, match=r"atrous_rates must be three positive rates, got \(6, 12\)"):
        DeepLabV3PlusHead(DILATED, 3, atrous_rates=[6, 12])


def test_training_deeplab_head_on_one_image_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs a batch of at least 2 images per process.*drop_last=True"):
        DeepLabV3PlusHead(DILATED, 3, decoder_channels=16)(features(DILATED, 1))


def test_conv_head_reads_the_map_that_it_was_told_to() -> None:
    head = ConvHead(MAPS, 3, map_index=1)
    maps = features(MAPS, 2)
    assert head.stride == 4
    weight, bias = head.layers[0].weight, head.layers[0].bias
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(head(maps), F.conv2d(maps[1], weight, bias))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"map_index": 5}, "one of the encoder's 5 maps, got 5"), ({"kernel_size": 2}, "kernel_size must be 1 or 3")],
    ids=["map_index", "kernel_size"],
)
def test_wrong_argument_of_conv_head_raises(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvHead(MAPS, 3, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"hidden": [0]}, {"dropout": -0.1}], ids=["hidden", "dropout"])
def test_wrong_argument_of_mlp_head_raises(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"MLPHead: .*{next(iter(arguments))} must be"):
        MLPHead(VECTOR, 3, **arguments)  # type: ignore[arg-type]


def test_upsampled_logits_line_up_with_the_image() -> None:
    """A gradient over the image stays one: corners are not aligned, so pixel centres keep their place."""
    head = ConvHead(FeatureSpec("maps", (1,), (4,)), 1, upsample=True)
    nn.init.ones_(head.layers[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(head.layers[0].bias)  # type: ignore[arg-type]
    image = torch.arange(32.0).expand(1, 1, 32, 32)
    logits = head([F.avg_pool2d(image, 4)])
    torch.testing.assert_close(logits[..., 2:-2], image[..., 2:-2])
