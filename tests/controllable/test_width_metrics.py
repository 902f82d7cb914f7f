"""Metrics of several widths in a validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_mtl.controllable import ControllableModule, WidthConfig, WidthMetrics
from tests.controllable.test_module import NARROW, batch, build
from tests.toys import make_module, make_trainer


def parts() -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Two batches of different size, the second without labels for one task."""
    inputs, targets = batch()
    second = {"kind": torch.full((6,), -100), "size": targets["size"][10:]}
    return [(inputs[:10], {name: target[:10] for name, target in targets.items()}), (inputs[10:], second)]


def validated(module: ControllableModule, callback: WidthMetrics, **options: Any) -> dict[str, float]:
    trainer: pl.Trainer = make_trainer(callbacks=[callback], **options)
    return dict(trainer.validate(module, torch.utils.data.DataLoader(parts(), batch_size=None), verbose=False)[0])


def test_metrics_are_those_of_evaluate_and_the_validation_stays_as_it_was() -> None:
    module, plain = build(), build()
    config = WidthConfig((0.5, 1.0), {"kind": 0.25})
    found = validated(module, WidthMetrics({"narrow": NARROW, "other": config}))
    expected = make_trainer().validate(plain, torch.utils.data.DataLoader(parts(), batch_size=None), verbose=False)[0]
    assert {key: found[key] for key in expected} == expected
    for name, widths in (("narrow", NARROW), ("other", config)):
        for task, metrics in module.evaluate(widths, parts()).items():
            for metric, value in metrics.items():
                assert found[f"val/{name}/{task}/{metric}"] == pytest.approx(value, nan_ok=True)
        assert found[f"flops/{name}"] == sum(module.flops(widths, (6,)).values())
    assert module.config == WidthConfig((1.0, 1.0), {"kind": 1.0, "size": 1.0})


def test_without_configurations_the_smallest_and_two_halves_are_logged() -> None:
    found = validated(build(), WidthMetrics())
    assert {key.split("/")[1] for key in found if key.count("/") == 3} == {"smallest", "encoder_half", "decoders_half"}
    assert found["flops/smallest"] < found["flops/encoder_half"] < found["flops/decoders_half"]


def test_every_validation_of_a_fit_begins_anew() -> None:
    callback = WidthMetrics({"narrow": NARROW})
    module = build()
    trainer = make_trainer(max_epochs=2, callbacks=[callback])
    loader = torch.utils.data.DataLoader(parts(), batch_size=None)
    trainer.fit(module, loader, loader)
    expected = module.evaluate(NARROW, parts())["kind"]["accuracy"]
    assert float(trainer.callback_metrics["val/narrow/kind/accuracy"]) == pytest.approx(expected)


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"configs must have names without '/', got \['a/b'\]"):
        WidthMetrics({"a/b": NARROW})
    with pytest.raises(MisconfigurationException, match="module must be a ControllableModule, got MultiTaskModule"):
        WidthMetrics().setup(make_trainer(), make_module(), "fit")
    with pytest.raises(ValueError, match=r"configs must not have the names of tasks, got \['kind'\]"):
        WidthMetrics({"kind": NARROW}).setup(make_trainer(), build(), "fit")
    with pytest.raises(ValueError, match=r"width must be one of .*, got 0\.3"):
        WidthMetrics({"odd": WidthConfig(0.3, {})}).setup(make_trainer(), build(), "fit")
