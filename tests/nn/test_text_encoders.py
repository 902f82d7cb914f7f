"""Encoders of text."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import LoRA, TextTransformer, TransformersEncoder
from lightning_mtl.nn.encoders.text_base import TextEncoder
from lightning_mtl.nn.recorded import describe
from lightning_mtl.tasks import TextClassification

pytest.importorskip("transformers")

VOCABULARY = 30
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}
ROBERTA = {**BERT, "max_position_embeddings": 14}  # two of them are not for tokens
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 12,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8}
LORA = LoRA(rank=2)

BUILDERS: dict[str, Callable[..., TextEncoder]] = {
    "from-scratch": lambda features: TextTransformer(VOCABULARY, features, 16, 2, 2, max_length=12),
    "rope": lambda features: TextTransformer(VOCABULARY, features, 16, 1, 2, positions="rope", num_token_types=0),
    "bert": lambda features: TransformersEncoder("bert", features, config=BERT),
    "bert-lora": lambda features: TransformersEncoder("bert", features, config=BERT, lora=LORA),
    "roberta": lambda features: TransformersEncoder(
        "roberta", features, config={**BERT, "max_position_embeddings": 14}
    ),
    "distilbert": lambda features: TransformersEncoder("distilbert", features, config=DISTILBERT),
    "t5": lambda features: TransformersEncoder("t5", features, config=T5),
}
encoders = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
kinds = pytest.mark.parametrize("features", ["cls", "mean", "tokens"])


def batch(*lengths: int, width: int = 9) -> dict[str, Tensor]:
    """Texts of these lengths with two segments, padded on the right."""
    torch.manual_seed(0)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (torch.arange(width) > 2).long()}


@encoders
@kinds
def test_features_are_those_of_the_spec_with_any_leading_dimensions(
    build: Callable[..., TextEncoder], features: str
) -> None:
    encoder = build(features).eval()
    inputs = batch(9, 4, 6, 1)
    flat = encoder(inputs)
    shape = (4, 16) if features != "tokens" else (4, 9, 16)
    assert flat.shape == shape
    assert encoder.feature_spec.channels == (16,)
    assert encoder.feature_spec.kind == ("tokens" if features == "tokens" else "vector")
    folded = encoder({name: value.view(2, 2, 9) for name, value in inputs.items()})
    torch.testing.assert_close(folded, flat.view(2, 2, *shape[1:]))


@encoders
@kinds
def test_padding_changes_nothing(build: Callable[..., TextEncoder], features: str) -> None:
    encoder = build(features).eval()
    short, long = batch(6, 3, width=6), batch(6, 3, width=9)
    for name in short:
        long[name][:, :6] = short[name]
    long["input_ids"][:, 6:] = 7
    expected, found = encoder(short), encoder(long)
    if features == "tokens":
        assert (found[:, 6:] == 0).all()
        assert (found[1, 3:] == 0).all()
        found = found[:, :6]
    torch.testing.assert_close(found, expected)


@encoders
def test_mean_is_that_of_the_tokens_and_cls_is_the_first(build: Callable[..., TextEncoder]) -> None:
    made = {features: build(features).eval() for features in ("tokens", "mean", "cls")}
    made["mean"].load_state_dict(made["tokens"].state_dict())
    made["cls"].load_state_dict(made["tokens"].state_dict())
    inputs = batch(9, 4)
    tokens = made["tokens"](inputs)
    torch.testing.assert_close(made["cls"](inputs), tokens[:, 0])
    torch.testing.assert_close(made["mean"](inputs), torch.stack([tokens[0].mean(0), tokens[1, :4].mean(0)]))


@encoders
def test_every_trained_parameter_gets_a_gradient(build: Callable[..., TextEncoder]) -> None:
    encoder = build("mean").train()
    encoder(batch(9, 4)).square().sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}


@encoders
def test_evaluation_is_deterministic_and_survives_state_dict_and_deepcopy(build: Callable[..., TextEncoder]) -> None:
    encoder, other, inputs = build("cls").eval(), build("cls").eval(), batch(5, 9)
    other.load_state_dict(encoder.state_dict())
    for twin in (encoder, other, copy.deepcopy(encoder)):
        torch.testing.assert_close(twin(inputs), encoder(inputs), rtol=0, atol=0)


@encoders
def test_bfloat16_autocast_gives_finite_features_and_gradients(build: Callable[..., TextEncoder]) -> None:
    encoder = build("mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(batch(9, 4))
    features.float().square().sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@encoders
def test_one_seed_draws_one_network(build: Callable[..., TextEncoder]) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build("cls").parameters() if p.ndim > 1]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@encoders
def test_bad_inputs_are_refused_by_name(build: Callable[..., TextEncoder]) -> None:
    encoder = build("cls")
    name, inputs = type(encoder).__name__, batch(9, 4)
    wrong = inputs["input_ids"].clone()
    wrong[0, 0] = VOCABULARY
    with pytest.raises(ValueError, match=rf"{name}: input_ids must be in 0..29 \(vocab_size=30\), got 30"):
        encoder({**inputs, "input_ids": wrong})
    with pytest.raises(ValueError, match=f"{name}: inputs must hold 'input_ids', got .'ids'."):
        encoder({"ids": wrong})
    with pytest.raises(ValueError, match=rf"{name}: attention_mask must have the shape of input_ids, \(2, 9\)"):
        encoder({**inputs, "attention_mask": wrong[:, :4]})
    with pytest.raises(ValueError, match=f"{name}: rows with several packed texts"):
        encoder({**inputs, "segment_ids": inputs["attention_mask"]})
    if encoder.max_length is not None:
        longest = encoder.max_length
        with pytest.raises(ValueError, match=f"{name}: a text must have at most {longest} tokens, got {longest + 1}"):
            encoder(torch.ones(1, longest + 1, dtype=torch.long))


def test_the_longest_text_fits_the_positions() -> None:
    for build in BUILDERS.values():
        encoder = build("cls")
        if encoder.max_length is not None and encoder.max_length < 20:
            encoder(torch.full((1, encoder.max_length), 5))


def test_token_types_and_order_matter_and_a_text_without_tokens_gives_zero() -> None:
    encoder = BUILDERS["from-scratch"]("mean").eval()
    inputs = batch(9, 4)
    other = encoder({**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert (other != encoder(inputs)).any(1).all()
    turned = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
    assert not torch.allclose(encoder(turned)[0], encoder(inputs)[0], atol=1e-3)
    assert (encoder(batch(0, 4))[0] == 0).all()


def test_packed_texts_do_not_see_each_other() -> None:
    encoder = BUILDERS["from-scratch"]("tokens").eval()
    one, two = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    packed = encoder(
        {
            "input_ids": torch.cat([one, two, torch.zeros(1, 1, dtype=torch.long)], 1),
            "segment_ids": torch.tensor([[1, 1, 1, 2, 2, 0]]),
            "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
        }
    )
    torch.testing.assert_close(packed[:, :3], encoder(one))
    torch.testing.assert_close(packed[:, 3:5], encoder(two))
    assert (packed[:, 5] == 0).all()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TextTransformer: features must be 'cls', 'mean' or 'tokens', got 'max'"):
        TextTransformer(VOCABULARY, "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="TextTransformer: positions must be 'learned' or 'rope', got 'none'"):
        TextTransformer(VOCABULARY, positions="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be a folder with config.json .* kind of model such as 'bert', got 'no"):
        TransformersEncoder("nowhere")
    with pytest.raises(ValueError, match=r"must be a folder with config.json as save_pretrained writes it, got 'bert'"):
        TransformersEncoder("bert", pretrained=True)
    with pytest.raises(ValueError, match=r"config has the unknown entries \['width'\] for a model of kind 'bert'"):
        TransformersEncoder("bert", config={"width": 3})
    TransformersEncoder("bert", config=BERT).model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a configuration and no weights; set pretrained=False"):
        TransformersEncoder(str(tmp_path), pretrained=True)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=64.0)], ids=["whole", "lora"])
def test_a_saved_model_loads_again_with_its_adapters_merged(tmp_path: Path, lora: LoRA | None) -> None:
    encoder = TransformersEncoder("bert", "tokens", config=BERT, lora=lora).eval()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    encoder.save_pretrained(tmp_path)
    again = TransformersEncoder(str(tmp_path), "tokens", pretrained=True).eval()
    assert all(parameter.requires_grad for parameter in again.parameters())
    torch.testing.assert_close(again(batch(9, 4)), encoder(batch(9, 4)), rtol=1e-4, atol=1e-5)
    changed = TransformersEncoder(str(tmp_path), "cls", config={"num_hidden_layers": 1}, pretrained=False)
    assert sum(p.numel() for p in changed.parameters()) < sum(p.numel() for p in again.parameters())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    config = {**BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = TransformersEncoder("bert", config=config)
    saving = TransformersEncoder("bert", config=config, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder(batch(9, 4)).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_only_adapters_and_heads_train_under_lora() -> None:
    tasks = {"a": TextClassification(2), "b": TextClassification(3)}
    module = MultiTaskModule(TransformersEncoder("bert", config=BERT, lora=LORA), tasks)
    shared = {id(parameter) for parameter in module.shared_parameters()}
    adapters = {name for name, parameter in module.encoder.named_parameters() if id(parameter) in shared}
    assert adapters
    assert all("lora_" in name for name in adapters)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    for _ in range(2):  # in the first step A has no gradient, since B is zero
        optimizer.zero_grad()
        losses = module.task_losses((batch(9, 4), {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 1])}))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    heads = {name for name in before if name.startswith("tasks.") and ".head." in name}
    assert moved == heads | {f"encoder.{name}" for name in adapters}


def test_lora_is_written_in_recipes_and_rebuilt_from_its_settings() -> None:
    parser = ArgumentParser()
    parser.add_argument("--encoder", type=nn.Module)
    encoder = TransformersEncoder("bert", config=BERT, lora=LoRA(rank=3, targets=["query"]))
    again = parser.instantiate(parser.parse_object({"encoder": describe(encoder)})).encoder
    assert describe(again)["init_args"]["lora"]["init_args"]["rank"] == 3
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in encoder.named_parameters() if p.requires_grad
    }
    short = {"class_path": "lightning_mtl.nn.TransformersEncoder", "init_args": {"model": "bert", "config": BERT}}
    short["init_args"]["lora"] = {"rank": 4}  # type: ignore[index]
    assert parser.instantiate(parser.parse_object({"encoder": short})).encoder.model.peft_config["default"].r == 4


def test_lora_refuses_bad_settings_and_layers_that_are_not_there() -> None:
    for setting in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}):
        with pytest.raises(ValueError, match=f"LoRA: {next(iter(setting))} must"):
            LoRA(**setting)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"LoRA: targets=\['q'\] does not fit BertModel.*are named .*query"):
        TransformersEncoder("bert", config=BERT, lora=LoRA(targets=["q"]))
