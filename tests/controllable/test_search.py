"""Widths for a preference and a budget."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch

from lightning_mtl.controllable import ControllableModule, WidthConfig, decoder_widths, search_widths
from lightning_mtl.nn import SlimmableMLP, SlimmableMLPHead
from lightning_mtl.tasks import MulticlassClassification, Regression

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "slimmable.json").read_text())["cases"]


def build(hidden: tuple[int, ...] = (32, 32)) -> ControllableModule:
    torch.manual_seed(0)
    head = functools.partial(SlimmableMLPHead, hidden=[32])
    tasks = {"kind": MulticlassClassification(num_classes=3, head=head), "size": Regression(head=head)}
    return ControllableModule(SlimmableMLP(6, hidden), tasks)


def batches() -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return [(inputs, {"kind": inputs[:, :3].argmax(1), "size": inputs[:, 3:4].clone()})]


def total(module: ControllableModule, config: WidthConfig) -> int:
    return sum(module.flops(config, (6,)).values())


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["args"]["fn"] == "decoder_widths"])
def test_decoder_widths_are_the_golden_ones(case: dict[str, dict[str, list[float]]]) -> None:
    assert decoder_widths(case["inputs"]["preference"], case["args"]["widths"]) == case["expected"]


def test_the_larger_of_two_equally_near_widths_is_taken() -> None:
    assert decoder_widths([0.375, 1.0], [0.25, 0.5, 1.0]) == [0.5, 1.0]


def test_the_search_finds_the_best_encoder_within_the_budget() -> None:
    module, data = build(), batches()
    decoders = {"kind": 1.0, "size": 0.25}
    budget = 0.5 * total(module, module.full)
    result = search_widths(module, {"kind": 0.9, "size": 0.1}, budget, data, (6,))
    assert result.config.decoders == decoders
    assert result.flops == total(module, result.config) <= budget
    reference = module.evaluate(module.full, data)

    def score(stages: tuple[float, ...]) -> float:
        found = module.evaluate(WidthConfig(stages, decoders), data)
        error = next(iter(found["size"]))
        return (
            0.9 * found["kind"]["accuracy"] / reference["kind"]["accuracy"]
            - 0.1 * found["size"][error] / reference["size"][error]
        )

    stages = itertools.product((0.25, 0.5, 0.75, 1.0), repeat=2)
    inside = [pair for pair in stages if total(module, WidthConfig(pair, decoders)) <= budget]
    assert 1 < len(inside) == result.evaluated < 16
    assert result.score == pytest.approx(max(score(pair) for pair in inside))


def test_evolution_finds_what_the_full_search_finds() -> None:
    module, data = build(), batches()
    budget = 0.6 * total(module, module.full)
    preference = {"kind": 0.5, "size": 0.5}
    full = search_widths(module, preference, budget, data, (6,))
    evolved = [search_widths(module, preference, budget, data, (6,), max_exhaustive=1) for _ in range(2)]
    assert evolved[0] == evolved[1]
    assert evolved[0].flops <= budget
    assert evolved[0].score == pytest.approx(full.score)


def test_the_least_preferred_decoder_is_narrowed_first() -> None:
    module = build()
    least = total(module, module.smallest)
    result = search_widths(module, {"kind": 0.55, "size": 0.45}, least + 200, batches(), (6,))
    assert result.config.decoders["size"] == 0.25
    assert result.flops <= least + 200
    exact = search_widths(module, {"kind": 0.55, "size": 0.45}, least, batches(), (6,))
    assert exact.config == WidthConfig((0.25, 0.25), {"kind": 0.25, "size": 0.25})


def test_wrong_budgets_and_preferences_raise_or_warn() -> None:
    module, data = build(), batches()
    least = total(module, module.smallest)
    with pytest.raises(ValueError, match=f"at least the {least} operations of the smallest network, got 10"):
        search_widths(module, {"kind": 0.5, "size": 0.5}, 10, data, (6,))
    with pytest.raises(ValueError, match="preference must be non-negative with a positive sum"):
        search_widths(module, {"kind": 1.5, "size": -0.5}, 1e9, data, (6,))
    with pytest.raises(ValueError, match=r"preference must name the tasks \['kind', 'size'\]"):
        search_widths(module, {"kind": 1.0}, 1e9, data, (6,))
    with pytest.warns(UserWarning, match="preference sums to 2, not to 1; it is normalised"):
        search_widths(module, {"kind": 1.0, "size": 1.0}, least, data, (6,))
    with pytest.raises(ValueError, match="population must be at least 2"):
        search_widths(module, {"kind": 0.5, "size": 0.5}, 1e9, data, (6,), population=1)
    with pytest.raises(ValueError, match="decoder_widths: preference must be non-negative"):
        decoder_widths([0.0, 0.0], [0.5, 1.0])
