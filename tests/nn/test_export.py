"""Encoders and heads compile without graph breaks and export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.nn import FPNHead, TimmEncoder
from tests.nn.cases import ENCODERS, HEADS, EncoderCase, HeadCase, features


class Network(nn.Module):
    """An encoder with one head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TimmEncoder("mobilenetv3_small_050", "maps")
        self.head = FPNHead(self.encoder.feature_spec, 3, pyramid_channels=16, segmentation_channels=32)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image))
        return logits


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("case", HEADS, ids=lambda c: c.id)
def test_head_compiles_and_exports_without_a_break(case: HeadCase) -> None:
    head = case.build(case.spec, 5).eval()
    inputs = features(case.spec, 2)
    expected = head(inputs)
    torch.testing.assert_close(torch.compile(head, fullgraph=True, backend="eager")(inputs), expected)
    torch.testing.assert_close(torch.export.export(head, (inputs,), strict=False).module()(inputs), expected)


@pytest.mark.parametrize(
    "case",
    [c for c in ENCODERS if c.id in ("mlp", "resnet18-maps", "vit_tiny-maps", "smp-resnet18")],
    ids=lambda c: c.id,
)
def test_encoder_compiles_and_exports_without_a_break(case: EncoderCase) -> None:
    encoder = case.build().eval()
    inputs = torch.randn(2, *case.shape)
    expected = encoder(inputs)
    torch.testing.assert_close(torch.compile(encoder, fullgraph=True, backend="eager")(inputs), expected)
    torch.testing.assert_close(torch.export.export(encoder, (inputs,), strict=False).module()(inputs), expected)


def test_exported_network_takes_any_batch_size() -> None:
    network = Network().eval()
    exported = torch.export.export(
        network, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    images = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(exported.module()(images), network(images))


def test_network_runs_in_onnx_as_in_torch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the exported network")
    network = Network().eval()
    image = torch.randn(1, 3, 64, 64)
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (image,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(image), rtol=1e-3, atol=1e-4)
