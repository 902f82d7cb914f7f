"""What is special about single tasks on text."""

from __future__ import annotations

import itertools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.losses import info_nce
from lightning_mtl.nn import FeatureSpec, IdentityHead, TextTransformer
from lightning_mtl.tasks import (
    MultipleChoice,
    Retrieval,
    SpanQuestionAnswering,
    TextClassification,
    TextRegression,
    TokenClassification,
)
from tests.processes import start

TOKENS = FeatureSpec("tokens", (8,))
VECTOR = FeatureSpec("vector", (8,))


def test_sentence_tasks_read_the_first_token_or_the_vector_of_a_text() -> None:
    for task in (TextClassification(3), TextRegression(3)):
        task.build_head(TOKENS)
        features = torch.randn(2, 5, 8)
        changed = features.clone()
        changed[:, 1:] = 0
        assert torch.equal(task(features), task(changed))
    task = TextClassification(3)
    task.build_head(VECTOR)
    assert task(torch.randn(2, 8)).shape == (2, 3)


def test_metrics_of_glue_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    task = TextClassification(2, ["binary_f1", "matthews"])
    logits, target = torch.randn(40, 2), torch.randint(2, (40,))
    for part in range(0, 40, 15):
        task.update_metrics(logits[part : part + 15], target[part : part + 15])
    values = task.metrics.compute()
    assert values["binary_f1"].item() == pytest.approx(f1_score(target, logits.argmax(1)))
    assert values["matthews"].item() == pytest.approx(matthews_corrcoef(target, logits.argmax(1)))


def test_metrics_are_chosen_by_name() -> None:
    assert list(TextClassification(2, ["matthews"]).metrics) == ["matthews"]
    for wrong in (["mcc"], []):
        with pytest.raises(ValueError, match=r"TextClassification: metrics must be some of \['accuracy', 'f1'.*got"):
            TextClassification(2, wrong)  # type: ignore[arg-type]


def test_entities_are_scored_only_with_labels_that_mark_some() -> None:
    assert sorted(TokenClassification(2).metrics) == ["accuracy", "f1"]
    assert sorted(TokenClassification(2, ["NOUN", "VERB"]).metrics) == ["accuracy", "f1"]
    assert "entity_f1" in TokenClassification(3, ["O", "B-X", "I-X"]).metrics
    with pytest.raises(ValueError, match=r"TokenClassification: labels must be 2 names, got \['O'\]"):
        TokenClassification(2, ["O"])
    with pytest.raises(ValueError, match="TokenHead: features must be of kind 'tokens', got 'vector'"):
        TokenClassification(2).build_head(VECTOR)


def best_span(first: Tensor, last: Tensor, longest: int, allowed: Tensor) -> list[int]:
    """Try every span."""
    spans = [
        (float(first[i] + last[j]), -i, -j)
        for i, j in itertools.product(range(len(first)), repeat=2)
        if i <= j < i + longest and allowed[i] and allowed[j]
    ]
    _, i, j = max(spans)
    return [-i, -j]


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_predicted_span_is_the_best_of_all_that_are_allowed(longest: int) -> None:
    torch.manual_seed(0)
    task = SpanQuestionAnswering(max_answer_length=longest)
    logits = torch.randn(20, 9, 2)
    context = torch.zeros(20, 9, dtype=torch.bool)
    context[:, 3:8] = True
    for allowed in (torch.ones_like(context), context):
        found = task.predict(logits, None if allowed.all() else context).tolist()
        expected = [best_span(*row.T, longest, mask) for row, mask in zip(logits, allowed, strict=True)]
        assert found == expected


def test_loss_of_a_span_is_the_mean_of_two_cross_entropies_and_padding_does_not_count() -> None:
    torch.manual_seed(0)
    task = SpanQuestionAnswering()
    task.build_head(TOKENS)
    features, target = torch.randn(2, 5, 8), torch.tensor([[1, 3], [0, 0]])
    logits = task(features)
    expected = (F.cross_entropy(logits[..., 0], target[:, 0]) + F.cross_entropy(logits[..., 1], target[:, 1])) / 2
    torch.testing.assert_close(task.loss(logits, target), expected)
    padded = task(torch.cat([features, torch.zeros(2, 3, 8)], 1))
    torch.testing.assert_close(task.loss(padded, target), expected)
    assert (task.predict(padded) < 5).all()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([3, 1], "spans whose first token is not last, got 3"),
        ([-100, 2], "-100 in both places or in none, got 2"),
        ([0, 5], "tokens 0..4 of the text or -100, got 5"),
    ],
)
def test_a_target_that_is_no_span_is_refused(target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"target must hold {message}"):
        SpanQuestionAnswering().loss(torch.zeros(1, 5, 2), torch.tensor([target]))


def test_alternatives_share_one_head_and_their_order_does_not_matter() -> None:
    for spec, shape in ((VECTOR, (2, 3, 8)), (TOKENS, (2, 3, 5, 8))):
        task = MultipleChoice(3)
        task.build_head(spec)
        features = torch.randn(shape)
        torch.testing.assert_close(task(features.flip(1)), task(features).flip(1))
        with pytest.raises(ValueError, match=r"MultipleChoice: features must be of 3 alternatives.* got \(2, 2"):
            task(features[:, :2])
    with pytest.raises(ValueError, match="MultipleChoice: num_choices must be at least 2, got 1"):
        MultipleChoice(1)


def naive_info_nce(queries: Tensor, candidates: Tensor, groups: list[int], scale: float) -> Tensor:
    losses = []
    for query, own in zip(queries, groups, strict=True):
        scores = torch.stack([scale * (query @ candidate) for candidate in candidates])
        right = [j for j, group in enumerate(groups) if group == own]
        losses.append(sum(scores.exp().sum().log() - scores[j] for j in right) / len(right))
    return torch.stack(losses)


def test_retrieval_is_info_nce_in_both_directions_with_groups_as_positives() -> None:
    torch.manual_seed(0)
    task, pairs, groups = Retrieval(dim=4, temperature=0.5), torch.randn(5, 2, 4), [7, 1, 7, 3, 1]
    unit = F.normalize(pairs, dim=-1)
    there, back = (naive_info_nce(unit[:, i], unit[:, 1 - i], groups, 2.0) for i in (0, 1))
    expected = (there.mean() + back.mean()) / 2
    torch.testing.assert_close(task.loss(pairs, torch.tensor(groups)), expected)
    with_holes = torch.cat([pairs, torch.randn(2, 2, 4)])
    torch.testing.assert_close(task.loss(with_holes, torch.tensor([*groups, -100, -100])), expected)
    target = torch.tensor(groups)
    vectors = unit.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: info_nce(v[:, 0], v[:, 1], target, target, 2.0), vectors)


def test_learned_temperature_starts_as_given_and_gets_a_gradient() -> None:
    pairs, groups = torch.randn(3, 2, 4), torch.arange(3)
    fixed, learned = Retrieval(4, 0.2), Retrieval(4, 0.2, learn_temperature=True)
    assert not list(fixed.parameters())
    loss = learned.loss(pairs, groups)
    torch.testing.assert_close(loss, fixed.loss(pairs, groups))
    loss.backward()
    assert learned.log_scale is not None
    assert learned.log_scale.grad is not None
    assert learned.log_scale.grad != 0
    with pytest.raises(ValueError, match=r"Retrieval: temperature must be at least 0\.01, got 0"):
        Retrieval(temperature=0.0)


def test_identity_head_compares_the_encoders_own_vectors() -> None:
    task = Retrieval(dim=8, head=IdentityHead)
    task.build_head(VECTOR)
    features = torch.randn(2, 2, 8)
    assert torch.equal(task(features), features)


# ------------------------------------------------------------------ learning
WORDS, LENGTH = 12, 6


def texts(num: int, *middle: int) -> dict[str, Tensor]:
    ids = torch.randint(2, WORDS, (num, *middle, LENGTH))
    ids[..., 0] = 1
    mask = torch.ones_like(ids)
    mask[: num // 2, ..., -1] = ids[: num // 2, ..., -1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def with_the_word(num: int) -> dict[str, Tensor]:
    """Texts in which word 2 stands exactly once, at places 1 to 4."""
    inputs = texts(num)
    inputs["input_ids"][inputs["input_ids"] == 2] = 3
    inputs["input_ids"][torch.arange(num), torch.randint(1, 5, (num,))] = 2
    return inputs


def problem(num: int) -> list[object]:
    """A batch a kind of task, each solved by looking for a word."""
    torch.manual_seed(0)
    plain, spans, choices, pairs = texts(num), with_the_word(num), texts(num, 2), texts(num, 2)
    ids = plain["input_ids"]
    right = torch.randint(2, (num,))
    choices["input_ids"][choices["input_ids"] == 2] = 3
    choices["input_ids"][torch.arange(num), right, 2] = 2
    pairs["input_ids"][:, 1, 1:4] = pairs["input_ids"][:, 0, 1:4]
    tags = torch.where(plain["attention_mask"] == 1, (ids > 6).long(), -100)
    place = (spans["input_ids"] == 2).long().argmax(1)
    sources = {
        "sentence": (plain, {"topic": (ids == 2).any(1).long(), "count": (ids == 3).sum(1).float(), "tags": tags}),
        "span": (spans, {"span": torch.stack([place, place], 1)}),
        "choice": (choices, {"choice": right}),
        "retrieval": (pairs, {"retrieval": torch.arange(num)}),
    }
    return [sources]


def network() -> MultiTaskModule:
    pl.seed_everything(0, verbose=False)
    return MultiTaskModule(
        TextTransformer(WORDS, "tokens", dim=32, depth=2, num_heads=2, max_length=LENGTH, dropout=0.0),
        {
            "topic": TextClassification(2),
            "count": TextRegression(),
            "tags": TokenClassification(2),
            "span": SpanQuestionAnswering(),
            "choice": MultipleChoice(2),
            "retrieval": Retrieval(dim=16),
        },
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )


def trainer(**options: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )


def test_one_encoder_learns_all_kinds_of_tasks_together() -> None:
    batches = DataLoader(problem(48), batch_size=None)  # type: ignore[arg-type]
    run, module = trainer(max_epochs=80, check_val_every_n_epoch=80), network()
    run.fit(module, batches, batches)
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    for name in ("topic/accuracy", "tags/accuracy", "span/exact_match", "choice/accuracy", "retrieval/recall_1"):
        assert values[f"val/{name}"] > 0.95, name
    assert values["val/count/pearson"] > 0.9


def test_one_step_in_mixed_precision() -> None:
    batches = DataLoader(problem(6), batch_size=None)  # type: ignore[arg-type]
    run, module = trainer(max_steps=1, precision="bf16-mixed"), network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    run.fit(module, batches)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_gathered_rows_of_two_processes_give_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    workers = start("tests.tasks.retrieval_worker", str(tmp_path))
    assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = torch.load(tmp_path / "joined.pt")
    for rank in range(2):
        torch.testing.assert_close(found[rank]["gradient"], expected["gradient"], rtol=1e-4, atol=1e-6)
        assert found[rank]["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
        assert found[rank]["alone"] == pytest.approx(expected["metrics"], abs=1e-6)
