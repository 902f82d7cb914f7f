"""The two-glyph images."""

from __future__ import annotations

import pytest
import torch

from lightning_mtl.data import TwoGlyphDataModule
from lightning_mtl.data.two_glyph import digit_glyphs


def images(split: str = "train", **options: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    data = TwoGlyphDataModule(num_train=400, num_val=100, num_test=100, **options)
    data.setup()
    table = data.datasets[split]
    return table.inputs, table.targets


def test_glyphs_are_ten_different_bitmaps() -> None:
    glyphs = digit_glyphs()
    assert glyphs.shape == (10, 7, 5)
    assert set(glyphs.unique().tolist()) == {0.0, 1.0}
    assert len({glyph.numpy().tobytes() for glyph in glyphs}) == 10
    assert glyphs[1].sum(1).tolist() == [1, 2, 1, 1, 1, 1, 3]


def test_without_noise_every_digit_can_be_read_off() -> None:
    inputs, targets = images(noise=0.0, label_noise=0.0)
    glyphs = digit_glyphs()
    corners = {"left": (0, 0), "right": (6, 8)}
    for task, (top, left) in corners.items():
        for image, digit in zip(inputs[:50, 0], targets[task], strict=False):
            places = [(top + i, left + j) for i in (0, 1) for j in (0, 1)]
            patches = [image[row : row + 7, column : column + 5] for row, column in places]
            found = [patch / patch.max() for patch in patches]
            assert any(torch.allclose(patch, glyphs[digit], atol=1e-6) for patch in found)
    peaks = inputs[:, 0, :8, :6].amax((1, 2))
    assert 0.7 <= peaks.min() < 0.75 < 1.25 < peaks.max() <= 1.3
    assert inputs[:, 0, :6, 8:].sum() == 0


def test_the_stated_share_of_the_training_labels_is_drawn_anew_and_no_other() -> None:
    for split, share in (("train", 0.5 * 0.9), ("test", 0.0)):
        _, clean = images(split, label_noise=0.0)
        inputs, noisy = images(split, label_noise=0.5)
        wrong = (clean["left"] != noisy["left"]).float().mean().item()
        assert wrong == pytest.approx(share, abs=0.05)
        assert inputs.std() > 0.2


@pytest.mark.parametrize(("argument", "value"), [("noise", -0.1), ("label_noise", 1.5)])
def test_refuses_numbers_out_of_range(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"TwoGlyphDataModule: {argument} must"):
        TwoGlyphDataModule(**{argument: value})
