"""Encoder-decoders of transformers that write text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_mtl.nn import LoRA, TransformersSeq2Seq
from lightning_mtl.nn.recorded import describe

T5 = {"vocab_size": 30, "d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2, "dropout_rate": 0.0}
T5 |= {"num_layers": 1, "num_decoder_layers": 1}
BART = {
    "vocab_size": 30,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "dropout": 0.0,
}
KINDS: dict[str, Callable[[], TransformersSeq2Seq]] = {
    "t5": lambda: TransformersSeq2Seq("t5", config=T5, decoder_start_token_id=0),
    "bart": lambda: TransformersSeq2Seq("bart", config=BART),
    "t5 with adapters": lambda: TransformersSeq2Seq("t5", config=T5, decoder_start_token_id=0, lora=LoRA(rank=2)),
}
each = pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)


def batch(encoder: TransformersSeq2Seq, written: list[list[int]]) -> dict[str, Tensor]:
    start = torch.full((len(written), 1), encoder.decoder_start_token_id)
    return {
        "input_ids": torch.tensor([[5, 6, 7, 2], [8, 2, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.cat([start, torch.tensor(written)], dim=1),
    }


@each
def test_logits_are_those_of_the_text_to_write_and_padding_changes_nothing(
    build: Callable[[], TransformersSeq2Seq],
) -> None:
    encoder = build().eval()
    inputs = batch(encoder, [[3, 4], [3, 4]])
    logits = encoder(inputs)
    assert logits.shape == (2, 3, encoder.vocab_size)
    assert encoder.feature_spec.channels == (30,)
    alone = {name: value[1:, :2] if "decoder" not in name else value[1:] for name, value in inputs.items()}
    torch.testing.assert_close(encoder(alone), logits[1:], atol=1e-5, rtol=1e-5)
    encoder.train()(inputs).sum().backward()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert any(bool((parameter.grad != 0).any()) for parameter in trained if parameter.grad is not None)


@each
def test_greedy_text_is_that_of_the_logits(build: Callable[[], TransformersSeq2Seq]) -> None:
    torch.manual_seed(1)
    encoder = build().eval()
    inputs = batch(encoder, [[3], [3]])
    written = encoder.generate(inputs, 3)
    assert written.shape[0] == 2
    assert written.shape[1] <= 3
    for row, tokens in enumerate(written.tolist()):
        taken: list[int] = []
        for token in tokens:
            given = {name: value[row : row + 1] for name, value in inputs.items()}
            given["decoder_input_ids"] = torch.tensor([[encoder.decoder_start_token_id, *taken]])
            with torch.no_grad():
                chosen = int(encoder(given)[0, -1].argmax())
            ended = any(end in taken for end in (1, 2))
            assert token == chosen or ended or token in (1, 2)  # BART forces its end token at the longest length
            taken.append(token)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain = TransformersSeq2Seq("t5", config=T5, decoder_start_token_id=0)
    saving = TransformersSeq2Seq("t5", config=T5, decoder_start_token_id=0, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        encoder(batch(encoder, [[3, 4], [3, 4]])).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_saved_model_is_loaded_again(tmp_path: Path) -> None:
    encoder = KINDS["t5 with adapters"]().eval()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    encoder.save_pretrained(tmp_path)
    loaded = TransformersSeq2Seq(str(tmp_path), pretrained=True, decoder_start_token_id=0).eval()
    inputs = batch(encoder, [[3, 4], [3, 4]])
    torch.testing.assert_close(loaded(inputs), encoder(inputs), atol=1e-5, rtol=1e-5)
    assert describe(loaded)["init_args"]["model"] == str(tmp_path)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"decoder_start_token_id must be given for 't5'.*T5 begins with padding"):
        TransformersSeq2Seq("t5", config=T5)
    with pytest.raises(ValueError, match="must be an encoder-decoder, got 'bert'"):
        TransformersSeq2Seq("bert")
    with pytest.raises(ValueError, match=r"TransformersSeq2Seq: model must be a folder .* such as 'bart', got 'none'"):
        TransformersSeq2Seq("none")
    encoder = KINDS["bart"]()
    inputs = batch(encoder, [[3], [3]])
    with pytest.raises(ValueError, match=r"must begin with the decoder_start_token_id of the model, 2, got \[3\]"):
        encoder({**inputs, "decoder_input_ids": torch.tensor([[3], [3]])})
    with pytest.raises(ValueError, match="inputs must hold 'decoder_input_ids'"):
        encoder({"input_ids": inputs["input_ids"]})
    with pytest.raises(ValueError, match=r"input_ids must be in 0\.\.29 .*, got 31"):
        encoder({**inputs, "input_ids": inputs["input_ids"] + 23})
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        encoder.generate(inputs, 0)
