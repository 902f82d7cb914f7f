"""The command that writes a network of chosen widths."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.cli import main
from lightning_mtl.controllable import ControllableModule, WidthConfig
from lightning_mtl.nn import LinearHead, MLPEncoder, SlimmableMLP, SlimmableMLPHead
from lightning_mtl.tasks import Regression


def saved(module: pl.LightningModule, path: Path) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tasks = {name: Regression(head=SlimmableMLPHead) for name in ("a", "b")}
    return saved(ControllableModule(SlimmableMLP(6, [32, 16]), tasks), tmp_path_factory.mktemp("run") / "last.ckpt")


def test_the_file_gives_what_the_module_gives_at_these_widths(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "small.onnx"
    words = ["subnet", str(checkpoint), "--encoder", "0.5", "--decoder", "b=0.25", "--input-size", "6"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "full: " in printed
    assert "FLOPs a sample (encoder " in printed
    module = ControllableModule.load_from_checkpoint(checkpoint).eval()
    inputs = torch.randn(5, 6)
    with torch.no_grad(), module.at(WidthConfig(0.5, {"b": 0.25})):
        expected = module(inputs)
    names = list(expected)
    found = onnxruntime.InferenceSession(str(out)).run(names, {"inputs": inputs.numpy()})
    for name, value in zip(names, found, strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "0.3"], "0.3"),
        (["--decoder", "c=0.5"], "unknown tasks"),
        (["--decoder", "b"], "--decoder must be TASK=WIDTH, got 'b'"),
        (["--decoder", "b=wide"], "--decoder must be TASK=WIDTH, got 'b=wide'"),
    ],
)
def test_widths_and_tasks_that_do_not_exist_are_refused(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["subnet", str(checkpoint), *words, "--input-size", "6", "--out", str(tmp_path / "x.onnx")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_files_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = saved(MultiTaskModule(MLPEncoder(6, [4]), {"a": Regression(head=LinearHead)}), tmp_path / "plain.ckpt")
    existing = tmp_path / "here.onnx"
    existing.write_text("mine")
    for file, out, message in (
        (tmp_path / "none.ckpt", tmp_path / "x.onnx", "there is no such file"),
        (plain, tmp_path / "x.onnx", "must be the checkpoint of a ControllableModule"),
        (checkpoint, existing, "exists; give another --out, or --force"),
    ):
        with pytest.raises(SystemExit):
            main(["subnet", str(file), "--input-size", "6", "--out", str(out)])
        assert message in capsys.readouterr().err
    assert existing.read_text() == "mine"
