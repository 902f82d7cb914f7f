"""Causal language models as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.nn import CausalLanguageModel, FeatureSpec, LoRA, TransformersCausalLM

SIZES = {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def own(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return CausalLanguageModel(30, 16, max_length=32, eos_token_id=2, **options).eval()


def gpt2(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return TransformersCausalLM("gpt2", config=SIZES, **options).eval()


models = pytest.mark.parametrize("make", [own, gpt2], ids=["own", "gpt2"])


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 30, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


@models
def test_features_are_the_logits(make: Any) -> None:
    model = make()
    assert model.feature_spec == FeatureSpec("tokens", (30,))
    assert model.vocab_size == 30
    assert model({"input_ids": tokens(2, 5)}).shape == (2, 5, 30)


@models
def test_padding_on_the_right_changes_nothing(make: Any) -> None:
    model, rows = make(), [tokens(3), tokens(6, seed=1)]
    logits = model(padded(rows))
    for number, row in enumerate(rows):
        torch.testing.assert_close(logits[number, : len(row)], model({"input_ids": row[None]})[0], rtol=1e-4, atol=1e-5)


@models
def test_packed_samples_read_as_if_alone_or_one_after_the_other(make: Any) -> None:
    one, two = tokens(4), tokens(3, seed=1)
    packed = {
        "input_ids": torch.cat((one, two, torch.zeros(2, dtype=torch.long)))[None],
        "segment_ids": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 7 + [0] * 2]),
    }
    model = make()
    alone = torch.cat([model({"input_ids": row[None]})[0] for row in (one, two)])
    torch.testing.assert_close(model(packed)[0, :7], alone, rtol=1e-4, atol=1e-5)
    joint = make(packed_attention="joint")
    after = joint({"input_ids": packed["input_ids"][:, :7]})[0]
    torch.testing.assert_close(joint(packed)[0, :7], after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[4:], alone[4:], atol=1e-3)


@models
def test_generation_takes_the_most_likely_token_whatever_the_padding(make: Any) -> None:
    model, rows = make(), [tokens(3), tokens(6, seed=1), tokens(1, seed=2)]
    found = model.generate(padded(rows), max_new_tokens=4)
    assert found.shape[0] == 3
    for row, written in zip(rows, found, strict=True):
        sequence = row.clone()
        for token in written:
            best = model({"input_ids": sequence[None]})[0, -1].argmax()
            assert token == best
            sequence = torch.cat((sequence, token[None]))
            if token == 2:
                break


@models
def test_generation_reads_the_prompt_alone_where_its_length_is_given(make: Any) -> None:
    model, rows = make(), tokens(2, 6)
    lengths = torch.tensor([2, 4])
    found = model.generate({"input_ids": rows, "prompt_length": lengths}, max_new_tokens=2)
    prompts = padded([row[:length] for row, length in zip(rows, lengths, strict=True)])
    assert torch.equal(found, model.generate(prompts, max_new_tokens=2))


def test_generation_stops_at_the_end_token_and_pads() -> None:
    model = own(pad_token_id=1)
    assert isinstance(model, CausalLanguageModel)

    def next_token(ids: Tensor) -> Tensor:  # counts down from the last token
        return 10.0 * nn.functional.one_hot((ids - 1).clamp(min=0), 30)

    model.decoder.forward = next_token  # type: ignore[method-assign, assignment]
    found = model.generate(padded([torch.tensor([9, 4]), torch.tensor([6])]), max_new_tokens=9)
    assert found.tolist() == [[3, 2, 1, 1], [5, 4, 3, 2]]


@models
def test_wrong_inputs_are_refused(make: Any) -> None:
    model = make()
    name = type(model).__name__
    with pytest.raises(ValueError, match=rf"{name}: input_ids must be in 0..29 \(vocab_size=30\), got 31"):
        model({"input_ids": torch.tensor([[31]])})
    left = {"input_ids": tokens(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(ValueError, match=f"{name}: padding must stand on the right"):
        model.generate(left, max_new_tokens=1)
    with pytest.raises(ValueError, match=f"{name}: every row must have a prompt"):
        model.generate({"input_ids": tokens(1, 3), "prompt_length": torch.tensor([0])}, max_new_tokens=1)
    with pytest.raises(ValueError, match=f"{name}: max_new_tokens must be at least 1, got 0"):
        model.generate({"input_ids": tokens(1, 3)}, max_new_tokens=0)
    with pytest.raises(ValueError, match=f"{name}: packed_attention must be 'separate' or 'joint'"):
        make(packed_attention="none")


def test_arguments_of_the_own_model_are_checked() -> None:
    with pytest.raises(ValueError, match=r"eos_token_id must be in 0\.\.29, got 30"):
        CausalLanguageModel(30, eos_token_id=30)
    with pytest.raises(ValueError, match="prompt and answer must have at most max_length=32 tokens, got 40"):
        own().generate({"input_ids": tokens(1, 10)}, max_new_tokens=30)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft on the layers of GPT-2
def test_adapters_alone_are_trained_and_a_saved_model_predicts_alike(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = TransformersCausalLM("gpt2", config=SIZES, lora=LoRA(2, targets=["c_attn"])).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = TransformersCausalLM(str(tmp_path), pretrained=True).eval()
    batch = {"input_ids": tokens(2, 5)}
    torch.testing.assert_close(again(batch), model(batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(again.generate(batch, 2), model.generate(batch, 2))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain = TransformersCausalLM("gpt2", config=SIZES)
    saving = TransformersCausalLM("gpt2", config=SIZES, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        model({"input_ids": tokens(2, 5)}).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_only_decoders_are_taken() -> None:
    with pytest.raises(ValueError, match="TransformersCausalLM: model must be a decoder alone"):
        TransformersCausalLM("t5")
