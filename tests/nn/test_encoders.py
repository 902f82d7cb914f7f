"""What is special about single encoders."""

from __future__ import annotations

import pytest
import torch

from lightning_mtl.nn import LeNetEncoder, MLPEncoder, SmpEncoder, TimmEncoder


def test_unknown_timm_model_names_close_matches() -> None:
    with pytest.raises(ValueError, match=r"TimmEncoder: model_name must be .* got 'resnet_18'; did you mean 'resnet"):
        TimmEncoder("resnet_18")


def test_timm_name_with_a_tag_of_weights_is_known() -> None:
    assert TimmEncoder("resnet18.a1_in1k").feature_spec.channels == (512,)


def test_image_size_of_a_model_that_takes_none_raises() -> None:
    with pytest.raises(ValueError, match="resnet18 takes no img_size, got img_size=64"):
        TimmEncoder("resnet18", img_size=64)


def test_output_stride_of_a_model_that_takes_none_raises() -> None:
    with pytest.raises(ValueError, match="takes no output_stride"):
        TimmEncoder("vit_tiny_patch16_224", output_stride=16)


def test_out_indices_of_a_pooled_vector_raise() -> None:
    with pytest.raises(ValueError, match="out_indices needs features='maps'"):
        TimmEncoder("resnet18", out_indices=[1])


def test_wrong_kind_of_features_raises() -> None:
    with pytest.raises(ValueError, match="features must be 'pooled' or 'maps', got 'map'"):
        TimmEncoder("resnet18", features="map")  # type: ignore[arg-type]


def test_out_indices_choose_the_maps() -> None:
    encoder = TimmEncoder("resnet18", "maps", out_indices=[1, 3])
    assert encoder.feature_spec.strides == (4, 16)
    assert [tuple(m.shape) for m in encoder(torch.zeros(1, 3, 32, 32))] == [(1, 64, 8, 8), (1, 256, 2, 2)]


def test_negative_out_indices_choose_blocks_of_a_vision_transformer() -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", "maps", img_size=32, out_indices=[-2, -1])
    assert encoder.feature_spec.channels == (192, 192)
    assert encoder.feature_spec.strides == (16, 16)


def test_image_size_may_be_a_rectangle() -> None:
    encoder = TimmEncoder("vit_tiny_patch16_224", "maps", img_size=(32, 64))
    assert encoder(torch.zeros(1, 3, 32, 64))[-1].shape == (1, 192, 2, 4)


def test_dilated_encoder_keeps_its_output_stride() -> None:
    assert TimmEncoder("resnet18", "maps", output_stride=8).feature_spec.strides == (2, 4, 8, 8, 8)
    encoder = SmpEncoder("resnet18", output_stride=16)
    assert encoder.feature_spec.strides == (2, 4, 8, 16, 16)
    assert [m.shape[-1] for m in encoder(torch.zeros(1, 3, 32, 32))] == [16, 8, 4, 2, 2]


def test_smp_stages_without_channels_are_left_out() -> None:
    assert SmpEncoder("mit_b0").feature_spec.strides == (4, 8, 16, 32)


def test_smp_encoder_of_a_timm_model() -> None:
    encoder = SmpEncoder("tu-convnext_atto")
    assert encoder.feature_spec.channels == (40, 80, 160, 320)
    assert [m.shape[-1] for m in encoder(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet_18"}, r"got 'resnet_18'; did you mean 'resnet"),
        ({"name": "resnet18", "weights": "imagnet"}, r"weights of resnet18 must be one of imagenet, .* got 'imagnet'"),
        ({"name": "resnet18", "depth": 6}, "depth must be 3, 4 or 5, got 6"),
    ],
    ids=["name", "weights", "depth"],
)
def test_wrong_argument_of_smp_encoder_raises(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmpEncoder(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 4, "hidden": []}, "hidden not empty"),
        ({"in_features": 0, "hidden": [4]}, "in_features and every width in hidden must be positive"),
        ({"in_features": 4, "hidden": [4], "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
    ids=["no layer", "no input", "dropout"],
)
def test_wrong_argument_of_mlp_encoder_raises(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLPEncoder(**arguments)  # type: ignore[arg-type]


def test_dropout_of_mlp_encoder_acts_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = MLPEncoder(4, [64], dropout=0.5)
    inputs = torch.ones(1, 4)
    assert not torch.equal(encoder(inputs), encoder(inputs))
    encoder.eval()
    assert torch.equal(encoder(inputs), encoder(inputs))


def test_lenet_has_the_shared_layers_of_the_digit_pairs_network() -> None:
    shapes = [tuple(p.shape) for p in LeNetEncoder().parameters() if p.ndim > 1]
    assert shapes == [(10, 1, 5, 5), (20, 10, 5, 5), (50, 720)]


def test_lenet_refuses_images_that_its_layers_use_up() -> None:
    with pytest.raises(ValueError, match=r"image_size must leave at least one pixel after 2 convolutions .* got 12"):
        LeNetEncoder(image_size=12)


def test_lenet_without_channels_raises() -> None:
    with pytest.raises(ValueError, match=r"channels not empty, got .* channels=\[\]"):
        LeNetEncoder(channels=())
