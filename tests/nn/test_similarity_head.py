from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_mtl.nn import FeatureSpec, SimilarityHead

SPEC = FeatureSpec("vector", (6,))


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head = SimilarityHead(SPEC, 4, dim=5)
    features, others = torch.randn(3, 6), torch.randn(7, 6)
    projected = head.projection(features)
    own = [[F.cosine_similarity(x, c, dim=0).item() / 0.07 for c in head.candidates] for x in projected]
    torch.testing.assert_close(head(features), torch.tensor(own))
    given = [[F.cosine_similarity(x, head.projection(c), dim=0).item() / 0.07 for c in others] for x in projected]
    torch.testing.assert_close(head(features, candidates=others), torch.tensor(given))


def test_the_temperature_is_learned_and_stays_above_its_smallest_value() -> None:
    head = SimilarityHead(SPEC, 2, init_tau=0.02, min_tau=0.01)
    optimizer = torch.optim.SGD([head.log_tau], lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        (head.tau * 10).backward()
        optimizer.step()
    assert 0 < head.log_tau.exp() < 0.02
    with torch.no_grad():
        head.log_tau.fill_(-20.0)
    assert head.tau.item() == pytest.approx(0.01)
    assert head(torch.randn(3, 6)).abs().max() <= 100.001


def test_the_length_of_the_features_under_the_map_does_not_matter() -> None:
    torch.manual_seed(0)
    head = SimilarityHead(SPEC, 3)
    torch.nn.init.zeros_(head.projection.bias)
    features = torch.randn(2, 6)
    torch.testing.assert_close(head(features), head(1e3 * features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"init_tau": 0.0}, "init_tau must be finite and at least min_tau > 0, got 0.0 and 0.01"),
        ({"init_tau": 0.005}, "got 0.005 and 0.01"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"SimilarityHead: .*{message}"):
        SimilarityHead(SPEC, 3, **options)  # type: ignore[arg-type]
