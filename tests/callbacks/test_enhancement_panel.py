"""Pictures and size of what a learned enhancement adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import EnhancementPanel
from lightning_mtl.nn import FeatEnHancer
from tests.callbacks.scenes import TinyEncoder, make_loader, make_module, make_tasks
from tests.toys import make_trainer

CELL, HEADER, GAP = (16 * 4, 24 * 4), 28, 4  # an image of 16 x 24 is enlarged to 96 pixels at least


class Logged(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("enhancement/")})


def enhanced_module(seed: int = 0) -> MultiTaskModule:
    torch.manual_seed(seed)
    encoder = FeatEnHancer(TinyEncoder(), hidden_channels=4, out_channels=6, heads=2, init_std=0.2)
    return MultiTaskModule(encoder, make_tasks())


def cell(picture: np.ndarray[Any, Any], row: int, column: int) -> np.ndarray[Any, Any]:
    top, left = HEADER + row * (CELL[0] + GAP), column * (CELL[1] + GAP)
    return picture[top : top + CELL[0] : 4, left : left + CELL[1] : 4]


def test_the_panel_shows_the_first_samples_before_and_after(tmp_path: Path) -> None:
    module, val = enhanced_module(), make_loader()
    panel = EnhancementPanel(num_samples=4, mean=None, std=None)
    make_trainer(default_root_dir=tmp_path, callbacks=[panel]).validate(module, val, verbose=False)
    (path,) = (tmp_path / "panels").iterdir()
    assert path.name.startswith("enhancement-epoch=0")
    picture = np.array(Image.open(path))
    images = torch.cat([batch for batch, _ in val])[:4]
    with torch.no_grad():
        after = module.encoder.enhancement(images)
    for i, (before, enhanced) in enumerate(zip(images, after, strict=True)):
        clamped = (255 * before.clamp(0, 1)).round()
        stretched = [255 * (x - x.min()) / (x.max() - x.min()) for x in (before, enhanced)]
        for column, expected in enumerate([clamped, *stretched]):
            found = torch.from_numpy(cell(picture, i, column).copy()).movedim(-1, 0).float()
            assert (found - expected).abs().max() <= 1  # rounding
    assert not np.array_equal(cell(picture, 0, 1), cell(picture, 0, 2))


def test_mean_and_deviation_of_the_residual_are_logged_at_the_trainers_cadence() -> None:
    module, logged = enhanced_module(), Logged()
    data = make_loader(batch_size=2)
    trainer = make_trainer(callbacks=[EnhancementPanel(num_samples=2), logged], log_every_n_steps=4)
    trainer.fit(module, data)
    assert [bool(found) for found in logged.seen] == [False, False, False, True]
    images = list(data)[-1][0]
    with torch.no_grad():
        residual = module.encoder.enhancement(images) - images
    assert logged.seen[-1]["enhancement/residual_mean"] == pytest.approx(float(residual.mean()), rel=1e-5)
    assert logged.seen[-1]["enhancement/residual_std"] == pytest.approx(float(residual.std()), rel=1e-5)


def test_a_batch_of_several_data_sets_and_mixed_precision_are_measured() -> None:
    module, logged = enhanced_module(), Logged()
    loaders = {"a": make_loader(batch_size=2), "b": make_loader(batch_size=2)}
    combined = pl.utilities.combined_loader.CombinedLoader(loaders, "max_size")
    trainer = make_trainer(
        callbacks=[EnhancementPanel(), logged], log_every_n_steps=1, precision="bf16-mixed", limit_train_batches=1
    )
    trainer.fit(module, combined)
    assert logged.seen[-1]["enhancement/residual_std"] > 0


def test_it_leaves_weights_modes_and_random_states_as_without_it(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [EnhancementPanel()]):
        pl.seed_everything(1, verbose=False)
        module = enhanced_module()
        trainer = make_trainer(callbacks=callbacks, log_every_n_steps=1, default_root_dir=tmp_path, max_epochs=2)
        trainer.fit(module, make_loader(shuffle=True), make_loader())
        found.append([*module.parameters(), *module.buffers(), torch.rand(2)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_fast_dev_run_leaves_no_file(tmp_path: Path) -> None:
    trainer = make_trainer(fast_dev_run=True, default_root_dir=tmp_path, callbacks=[EnhancementPanel()])
    trainer.fit(enhanced_module(), make_loader(), make_loader())
    assert list(tmp_path.rglob("*")) == []


def test_a_module_without_an_enhancement_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"EnhancementPanel: the module must have .*; put FeatEnHancer"):
        make_trainer(callbacks=[EnhancementPanel()]).fit(make_module(), make_loader())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"EnhancementPanel: num_samples must be positive, got 0"):
        EnhancementPanel(num_samples=0)
    with pytest.raises(ValueError, match=r"EnhancementPanel: mean and std must have one number per channel"):
        EnhancementPanel(mean=None)
