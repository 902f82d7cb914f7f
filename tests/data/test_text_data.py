"""What holds for every data module of text, on records made up here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mtl.data import DataFileError, DatasetNotFoundError, EmptySplitError, FixedRatios
from lightning_mtl.data.base import Split
from lightning_mtl.data.text import (
    Answers,
    Choice,
    Classes,
    Generation,
    Numbers,
    Pair,
    Score,
    Span,
    SymbolTokenizer,
    Tags,
    TextDataModule,
    TextRecords,
    TokenizerTraining,
)
from lightning_mtl.data.text.cache import Ragged, Tokens, cache_folder, read_tokens, write_tokens
from lightning_mtl.data.text.encoding import Encoding
from lightning_mtl.data.text.tokenizers import fingerprint, load_tokenizer

WORDS = ["red", "green", "blue", "dog", "cat", "unbelievable", "believable", "un"]
TOKENS = SymbolTokenizer(WORDS)  # padding 0, begin 1, end 2, unknown 3, red 4, green 5 ...


def words(count: int, first: int = 0) -> str:
    return " ".join(WORDS[(first + number) % 5] for number in range(count))


@pytest.fixture(scope="module")
def fast() -> Any:
    """A small trained WordPiece."""
    return TokenizerTraining(vocab_size=80, min_frequency=1).train([*WORDS, "red dog, blue cat."] * 2)


class Written(TextDataModule):
    """Records that a test hands over: (source, split) -> records."""

    def __init__(
        self,
        records: Mapping[tuple[str, Split], TextRecords | Sequence[TextRecords] | None],
        forms: Mapping[str, Any],
        sources: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{"tokenizer": TOKENS, "cache": False, "num_workers": 0, "batch_size": 4, **options})
        self.written = dict(records)
        self._of = dict(forms)
        self._from = sources

    def forms(self) -> Mapping[str, Any]:
        return self._of

    def sources(self) -> Mapping[str, Sequence[str]]:
        return super().sources() if self._from is None else self._from

    def read(self, task: str, split: Split) -> Any:
        return self.written.get((task, split))


def rows(texts: Sequence[tuple[str, ...]], targets: Any = None, **more: Any) -> TextRecords:
    return TextRecords(Path("rows.tsv"), list(range(1, len(texts) + 1)), texts, targets=targets, **more)


def one(form: Any, records: TextRecords, **options: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The only batch of a task's training rows, in their order."""
    data = Written({("task", "train"): records}, {"task": form}, **options)
    data.setup_split("train")
    samples = [data.datasets["train"][row] for row in range(len(records))]
    inputs, targets = data.collate(samples)
    return inputs, targets["task"]


def setup_split(self: TextDataModule, split: Split) -> None:
    self.datasets[split] = self._checked(split, self.make_dataset(split))


@pytest.fixture(autouse=True)
def _one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextDataModule, "setup_split", setup_split, raising=False)


# ---------------------------------------------------------------------- forms
def test_classes_are_padded_on_the_right_with_a_mask() -> None:
    inputs, target = one(Classes(("no", "yes")), rows([("red dog",), ("cat",)], ["yes", None]))
    assert inputs["input_ids"].tolist() == [[1, 4, 7, 2], [1, 8, 2, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert {value.dtype for value in (*inputs.values(), target)} == {torch.int64}
    assert target.tolist() == [1, -100]


def test_scores_and_numbers_are_float32_and_nan_without_label() -> None:
    _, target = one(Score(0, 5), rows([("red",), ("dog",)], ["3.5", None]))
    assert target.dtype == torch.float32
    assert target[0] == 3.5
    assert target[1].isnan()
    _, target = one(Numbers(2), rows([("red",), ("dog",)], [[1, 0.5], None]))
    assert (target.dtype, target.shape) == (torch.float32, (2, 2))
    assert target[0].tolist() == [1, 0.5]
    assert target[1].isnan().all()


def test_answers_are_pairs_of_integers() -> None:
    _, target = one(Answers(), rows([("red",), ("dog",)], [(1, 7), None]))
    assert target.dtype == torch.int64
    assert target.tolist() == [[1, 7], [-100, -100]]


def test_pairs_of_texts_have_segments(fast: Any) -> None:
    inputs, _ = one(Classes(("a",)), rows([("red dog", "blue cat")], ["a"]), tokenizer=fast)
    expected = fast("red dog", "blue cat")
    assert inputs["input_ids"][0].tolist() == expected["input_ids"]
    assert inputs["token_type_ids"][0].tolist() == expected["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["symbols", "trained"])
def test_a_words_label_stands_at_its_first_piece(kind: str, fast: Any) -> None:
    tokenizer = TOKENS if kind == "symbols" else TokenizerTraining(vocab_size=40, min_frequency=1).train(["ab", "b"])
    texts = [("red", "dog", "cat"), ("cat",)] if kind == "symbols" else [("ab", "ba", "b"), ("b",)]
    inputs, target = one(Tags(("O", "B")), rows(texts, [["O", "B", None], ["B"]]), tokenizer=tokenizer)
    assert target.shape == inputs["input_ids"].shape
    labels = [[label for label in row if label != -100] for row in target.tolist()]
    assert labels == [[0, 1], [1]]
    if kind == "symbols":
        assert target[0].tolist() == [-100, 0, 1, -100, -100]
    else:  # ba is b and ##a: the label stands at b
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        assert tokens == ["[CLS]", "ab", "b", "##a", "b", "[SEP]"]
        assert target[0].tolist() == [-100, 0, 1, -100, -100, -100]


def test_a_span_is_first_and_last_token_of_the_passage(fast: Any) -> None:
    passage = "red dog, blue cat."
    start = passage.index("blue")
    targets = [(start, start + len("blue cat")), None, (start - 1, start + 5)]  # the last with spaces at both ends
    texts = [("cat", passage)] * 3
    inputs, target = one(Span(), rows(texts, targets), tokenizer=fast)
    first, last = target[0].tolist()
    assert fast.decode(inputs["input_ids"][0, first : last + 1]) == "blue cat"
    assert target[1].tolist() == [-100, -100]
    assert target[2].tolist() == [first, first]


def test_a_span_that_is_cut_off_has_no_label(fast: Any) -> None:
    passage = "red dog, blue cat."
    texts = rows([("cat", passage)], [(passage.index("cat"), passage.index("cat") + 3)])
    assert (one(Span(), texts, tokenizer=fast, max_length=8, truncation="only_second")[1] == -100).all()
    assert (one(Span(), texts, tokenizer=fast, max_length=16, truncation="only_second")[1] >= 0).all()


def test_spans_need_a_tokenizer_that_knows_characters() -> None:
    with pytest.raises(TypeError, match=r"Written: tokenizer must be a transformers\.PreTrainedTokenizerFast.*Symbol"):
        one(Span(), rows([("red", "dog")], [(0, 3)]))


def test_choices_have_a_dimension_of_their_own() -> None:
    choices = [(("red", "dog"), ("red", "cat cat")), (("blue", "dog"), ("blue", "dog"))]
    inputs, target = one(Choice(2), rows([(), ()], [1, None], choices=choices))
    assert inputs["input_ids"].shape == (2, 2, 6)
    assert inputs["input_ids"][0].tolist() == [[1, 4, 2, 7, 2, 0], [1, 4, 2, 8, 8, 2]]
    assert target.tolist() == [1, -100]


def test_pairs_without_groups_are_groups_of_their_own() -> None:
    choices = [(("red",), ("red dog",)), (("blue",), ("blue cat",)), (("cat",), ("dog",))]
    inputs, target = one(Pair(), rows([()] * 3, None, choices=choices))
    assert inputs["input_ids"].shape == (3, 2, 4)
    assert target.tolist() == [0, 1, 2]


def test_written_texts_are_shifted_for_the_decoder() -> None:
    form = Generation(max_length=3, start="bos")
    inputs, target = one(form, rows([("red",), ("red",), ("red",)], ["dog", "dog cat dog cat", None]))
    assert target.tolist() == [[7, 2, -100], [7, 8, 7], [-100, -100, -100]]
    assert inputs["decoder_input_ids"].tolist() == [[1, 7, 0], [1, 7, 8], [1, 0, 0]]
    assert inputs["decoder_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


# ---------------------------------------------------------------------- truncation and bad rows
@pytest.mark.parametrize("kind", ["symbols", "trained"])
@pytest.mark.parametrize(
    ("truncation", "kept"), [("longest_first", (2, 2)), ("only_first", (1, 3)), ("only_second", (3, 1))]
)
def test_truncation_cuts_the_segment_it_names(kind: str, truncation: Any, kept: tuple[int, int], fast: Any) -> None:
    tokenizer = TOKENS if kind == "symbols" else fast
    records = rows([(words(3), words(3, 1))], ["a"])
    inputs, _ = one(Classes(("a",)), records, tokenizer=tokenizer, max_length=7, truncation=truncation)
    ids = inputs["input_ids"][0].tolist()
    assert len(ids) == 7
    cut = [" ".join(text.split()[:count]) for text, count in zip(records.texts[0], kept, strict=True)]
    assert ids == tokenizer(*cut)["input_ids"]


@pytest.mark.parametrize("kind", ["symbols", "trained"])
@pytest.mark.parametrize("truncation", ["error", "only_second"])
def test_a_row_that_stays_too_long_is_an_error_with_its_line(kind: str, truncation: Any, fast: Any) -> None:
    records = rows([("red", "dog"), (words(9), words(2))], ["a", "a"])
    with pytest.raises(DataFileError, match=r"'rows\.tsv:2': a row must have at most 8 tokens, got 14; raise max_len"):
        one(
            Classes(("a",)),
            records,
            max_length=8,
            truncation=truncation,
            tokenizer=TOKENS if kind == "symbols" else fast,
        )


@pytest.mark.parametrize(
    ("form", "records", "problem"),
    [
        (
            Classes(("a", "b")),
            rows([("red",), ("dog",)], ["a", "c"]),
            r"rows\.tsv:2': label must be one of a, b, got 'c'",
        ),
        (Score(0, 1), rows([("red",)], ["many"]), r"rows\.tsv:1': score must be a number in \[0, 1\], got 'many'"),
        (Numbers(2), rows([("red",)], [[1]]), r"rows\.tsv:1': target must be 2 numbers, got \[1\]"),
        (
            Tags(("O",)),
            rows([("red", "dog")], [["O"]]),
            r"rows\.tsv:1': there must be a label for each of 2 words, got 1",
        ),
        (Tags(("O",)), rows([()], [[]]), r"rows\.tsv:1': a row must have at least one word"),
        (
            Choice(2),
            rows([()], [2], choices=[(("a",), ("b",))]),
            r"rows\.tsv:1': choice must be a number in 0\.\.1, got 2",
        ),
        (
            Choice(3),
            rows([()], [1], choices=[(("a",), ("b",))]),
            r"rows\.tsv:1': a row must have 3 alternatives, got 2",
        ),
        (Answers(), rows([("red",)], [(2, 0)]), r"rows\.tsv:1': answer must be \(0 or 1"),
        (Pair(), rows([()], [-3], choices=[(("a",), ("b",))]), r"rows\.tsv:1': group must be an integer of at least 0"),
        (Generation(), rows([("red",)], [4]), r"rows\.tsv:1': text to write must be a string, got 4"),
        (Classes(("a",)), rows([("red",), ("red", "dog")], ["a", "a"]), r"rows\.tsv:2': all rows must have the same"),
        (Classes(("a",)), rows([], []), r"rows\.tsv': must hold at least one row, got none"),
    ],
    ids=[
        "class",
        "score",
        "numbers",
        "tags",
        "words",
        "choice",
        "choices",
        "answer",
        "group",
        "text",
        "segments",
        "none",
    ],
)
def test_a_bad_row_is_an_error_with_its_line(form: Any, records: TextRecords, problem: str) -> None:
    with pytest.raises(DataFileError, match=problem):
        one(form, records)


def test_records_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TextRecords: everything must have the length of lines, 1, got \{'texts': 2"):
        TextRecords(Path("a"), [1], [("a",), ("b",)])


# ---------------------------------------------------------------------- batches
def two_tasks(**options: Any) -> Written:
    def some(count: int, first: int, label: str) -> TextRecords:
        return rows([(words(1 + number % 9, first),) for number in range(count)], [label] * count)

    return Written(
        {("long", "train"): some(40, 0, "a"), ("short", "train"): some(20, 1, "b"), ("long", "val"): some(11, 2, "a")}
        | {("short", "val"): some(5, 3, "b")},
        {"long": Classes(("a",)), "short": Classes(("x", "b"))},
        **options,
    )


def test_batches_hold_one_task_of_similar_lengths_and_an_epoch_every_row() -> None:
    data = two_tasks(sampling=None)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 15
    assert {len(targets) for _, targets in batches} == {1}
    padding = sum(int((inputs["attention_mask"] == 0).sum()) for inputs, _ in batches)
    assert padding < 0.15 * sum(inputs["input_ids"].numel() for inputs, _ in batches)
    assert data.task_ratios == pytest.approx({"long": 2 / 3, "short": 1 / 3})


def test_ratios_are_known_before_the_loader_and_several_batches_can_be_of_one_draw() -> None:
    data = two_tasks(sampling=FixedRatios({"long": 1, "short": 3}), batches_per_draw=5, steps_per_epoch=20)
    data.setup("fit")
    assert data.task_ratios == {"long": 0.25, "short": 0.75}
    drawn = [next(iter(targets)) for _, targets in data.train_dataloader()]
    assert len(drawn) == 20
    assert all(len(set(drawn[first : first + 5])) == 1 for first in range(0, 20, 5))


def test_a_mixed_batch_carries_ignored_labels_for_the_rows_of_other_tasks() -> None:
    data = two_tasks(mixed=True, sampling=FixedRatios({"long": 1, "short": 1}), batch_size=8)
    data.setup("fit")
    for inputs, targets in data.train_dataloader():
        assert inputs["input_ids"].shape[0] == 8
        if len(targets) == 2:
            assert ((targets["long"] == -100) != (targets["short"] == -100)).all()
    assert data.task_ratios == {"long": 0.5, "short": 0.5}


def test_a_sample_alone_is_a_batch_of_one() -> None:
    data = two_tasks()
    data.setup("fit")
    inputs, targets = data.collator()(data.datasets["train"][0])
    assert inputs["input_ids"].shape[0] == len(targets["long"]) == 1


def test_tasks_of_different_inputs_stand_apart_in_a_mixed_batch() -> None:
    choices = [(("red",), ("dog",))] * 8
    records = {
        ("flat", "train"): rows([("red dog",)] * 8, ["a"] * 8),
        ("pick", "train"): rows([()] * 8, [0] * 8, choices=choices),
    }
    data = Written(records, {"flat": Classes(("a",)), "pick": Choice(2)}, mixed=True, batch_size=8)
    data.setup_split("train")
    batch = data.collate([data.datasets["train"][row] for row in (0, 9, 1)])
    assert set(batch) == {"flat", "pick"}
    assert batch["flat"][0]["input_ids"].shape == (2, 4)
    assert batch["pick"][0]["input_ids"].shape == (1, 2, 3)
    assert batch["pick"][1]["pick"].tolist() == [0]


def test_tasks_about_the_same_rows_are_labelled_together() -> None:
    records = rows([("red",), ("dog",)], {"kind": ["a", None], "size": ["1", "2"]})
    forms = {"kind": Classes(("a",)), "size": Score()}
    data = Written({("both", "train"): records}, forms, {"both": ("kind", "size")}, label_fraction={"size": 0.5})
    data.setup_split("train")
    _, targets = data.collate([data.datasets["train"][row] for row in range(2)])
    assert targets["kind"].tolist() == [0, -100]
    assert int(targets["size"].isnan().sum()) == 1


def test_evaluation_sees_every_row_once_over_two_processes() -> None:
    seen = []
    for rank in range(2):
        data = two_tasks(batch_size=3)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"num_replicas": 2, "rank": rank}, lightning_module=None
        )
        data.setup("validate")
        sampler = data.val_dataloader().sampler
        for batch, (inputs, targets) in zip(sampler, data.val_dataloader(), strict=True):
            seen += batch
            assert len(targets) == 1
            lengths = inputs["attention_mask"].sum(1)
            assert lengths.equal(lengths.sort().values)
    assert sorted(seen) == list(range(16))


def test_label_fraction_keeps_a_share_of_each_tasks_own_rows() -> None:
    data = two_tasks(label_fraction={"long": 0.25})
    data.setup("fit")
    kept = [targets for _, targets in (data.datasets["train"][row] for row in range(60))]
    assert sum(int(targets["long"] != -100) for targets in kept if "long" in targets) == 10
    assert all(targets["short"] == 1 for targets in kept if "short" in targets)


def test_ids_and_places_are_kept_with_the_rows() -> None:
    first, second = rows([("red",)], ["a"], ids=["x7"]), rows([("dog",), ("cat",)], ["a", "a"], ids=["y1", "y2"])
    data = Written({("task", "train"): [first, second]}, {"task": Classes(("a",))})
    data.setup_split("train")
    dataset = data.datasets["train"]
    assert dataset.ids == {"task": ["x7", "y1", "y2"]}
    assert dataset.sources["task"].lines == [1, 1, 2]
    assert [dataset[row][0]["input_ids"][1] for row in range(3)] == [4, 7, 8]
    assert dataset.place(2) == ("task", 2)


def test_no_rows_at_all_and_a_loader_before_setup_are_errors() -> None:
    with pytest.raises(EmptySplitError, match=r"split 'val' must hold at least one sample, none of the tasks"):
        Written({("task", "train"): rows([("red",)], ["a"])}, {"task": Classes(("a",))}).setup("fit")
    with pytest.raises(RuntimeError, match=r"training split is not set up; call setup"):
        _ = two_tasks().task_ratios


# ---------------------------------------------------------------------- tokenizers
@pytest.mark.parametrize("model", ["wordpiece", "bpe"])
def test_training_a_tokenizer_is_deterministic_and_survives_saving(model: Any, tmp_path: Path) -> None:
    texts = [words(1 + number % 7, number) + f" {number % 13}" for number in range(200)]
    training = TokenizerTraining(vocab_size=300, model=model)
    tokenizer, again = training.train(texts), training.train(texts)
    assert tokenizer.get_vocab() == again.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer("Test", tmp_path)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    assert loaded("red dog", "cat")["input_ids"] == tokenizer("red dog", "cat")["input_ids"]
    assert [loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id] == [0, 1, 2, 3]
    assert loaded.decode(loaded.encode("red dog"), skip_special_tokens=True).strip() == "red dog"
    if model == "bpe":
        assert loaded.unk_token_id not in loaded.encode("\u00e9\u4e2d")


def test_a_fingerprint_follows_the_content_not_the_last_call(fast: Any) -> None:
    before = fingerprint(fast)
    fast(["red dog", "cat"], truncation=True, max_length=3, padding=True)
    assert fingerprint(fast) == before
    assert fingerprint(TokenizerTraining(vocab_size=81, min_frequency=1).train(WORDS)) != before
    assert fingerprint(TOKENS) == fingerprint(SymbolTokenizer(WORDS)) != fingerprint(SymbolTokenizer(WORDS[:3]))


def test_a_missing_or_empty_tokenizer_folder_says_what_to_do(tmp_path: Path) -> None:
    for folder, problem in (
        (tmp_path / "nowhere", "is not a folder"),
        (tmp_path, "holds no tokenizer that can be read"),
    ):
        data = two_tasks(tokenizer=str(folder))
        with pytest.raises(
            DatasetNotFoundError, match=rf"Written: tokenizer: .*{problem}.*save_pretrained.*downloaded"
        ):
            data.setup("fit")


def test_a_tokenizer_larger_than_the_encoder_is_refused() -> None:
    data = two_tasks()
    encoder = SimpleNamespace(vocab_size=len(TOKENS) - 1)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(encoder=encoder))  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=r"tokenizer must have at most the 11 tokens that the encoder .* knows, got 12"
    ):
        data.setup("fit")


@pytest.mark.parametrize("options", [{"vocab_size": 5}, {"model": "unigram"}, {"min_frequency": 0}], ids=str)
def test_settings_of_a_training_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"TokenizerTraining: {next(iter(options))} must be"):
        TokenizerTraining(**options)


# ---------------------------------------------------------------------- cache
@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were tokenized, in order."""
    found: list[str] = []
    encode = Encoding.encode

    def counted(self: Encoding, records: TextRecords, forms: Any) -> Tokens:
        found.append(str(records.path))
        return encode(self, records, forms)

    monkeypatch.setattr(Encoding, "encode", counted)
    return found


def test_a_second_run_tokenizes_nothing_and_gives_the_same(tmp_path: Path, encoded: list[str]) -> None:
    options = {"cache": True, "cache_dir": str(tmp_path), "tokenizer": None}
    first = two_tasks(**options)
    first.prepare_data()
    assert len(encoded) == 4
    first.setup("fit")
    second = two_tasks(**options)
    second.prepare_data()
    second.setup("fit")
    assert len(encoded) == 4
    assert len(list((tmp_path / "tokenizers").iterdir())) == 1
    for (one_inputs, one_targets), (inputs, targets) in zip(
        first.train_dataloader(), second.train_dataloader(), strict=True
    ):
        assert one_inputs["input_ids"].equal(inputs["input_ids"])
        assert all(one_targets[task].equal(targets[task]) for task in targets)


@pytest.mark.parametrize("change", ["text", "label", "max_length", "truncation", "tokenizer", "form"])
def test_a_change_of_what_decides_makes_the_tokens_anew(change: str, tmp_path: Path, encoded: list[str]) -> None:
    def run(changed: bool) -> None:
        text, label = ("dog" if changed and change == "text" else "red"), "b" if changed and change == "label" else "a"
        options: dict[str, Any] = {"max_length": 9} if changed and change == "max_length" else {}
        options |= {"truncation": "only_first"} if changed and change == "truncation" else {}
        options |= {"tokenizer": SymbolTokenizer([*WORDS, "new"])} if changed and change == "tokenizer" else {}
        labels = ("b", "a") if changed and change == "form" else ("a", "b")
        records = rows([(text,)], [label])
        data = Written(
            {("task", "train"): records}, {"task": Classes(labels)}, cache=True, cache_dir=str(tmp_path), **options
        )
        data.setup_split("train")

    run(False)
    run(False)
    assert len(encoded) == 1
    run(True)
    assert len(encoded) == 2


def test_a_damaged_file_of_the_cache_is_made_anew_with_a_warning(tmp_path: Path, encoded: list[str]) -> None:
    def run() -> Any:
        data = two_tasks(cache=True, cache_dir=str(tmp_path))
        data.setup("fit")
        return data.datasets["train"][3][0]["input_ids"].tolist()

    before = run()
    for path in (tmp_path / "tokens").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.warns(UserWarning, match="cannot be read and is made anew"):
        assert run() == before
    assert len(encoded) == 8


def test_tokens_on_disk_are_mapped_and_sent_to_other_processes_by_name(tmp_path: Path) -> None:
    columns = {"input_ids": Ragged.of([[1, 2, 3], [4]]), "target.a": np.array([0.5, np.nan], dtype=np.float32)}
    write_tokens(tmp_path / "x.arrow", Tokens(columns))
    found = read_tokens(tmp_path / "x.arrow")
    assert found["input_ids"][0].tolist() == [1, 2, 3]
    assert not found["input_ids"].values.flags.owndata  # type: ignore[union-attr]
    assert np.array_equal(found["target.a"], columns["target.a"], equal_nan=True)
    assert found.__reduce__()[1] == (tmp_path / "x.arrow",)
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("LIGHTNING_MTL_CACHE", raising=False)
    assert cache_folder(None) == Path("/x/lightning_mtl")
    monkeypatch.setenv("LIGHTNING_MTL_CACHE", "/y")
    assert cache_folder(None) == Path("/y")
    assert cache_folder("z") == Path("z")


def test_workers_change_nothing(tmp_path: Path) -> None:
    def batches(workers: int) -> list[list[int]]:
        data = two_tasks(num_workers=workers, persistent_workers=False, cache=True, cache_dir=str(tmp_path))
        data.setup("fit")
        return [inputs["input_ids"].flatten().tolist() for inputs, _ in data.train_dataloader()]

    assert batches(0) == batches(2)


def test_a_loader_resumes_in_the_middle_of_an_epoch() -> None:
    def loader() -> Any:
        data = two_tasks()
        data.setup("fit")
        return data.train_dataloader()

    whole = [(i["input_ids"].tolist(), list(t)) for i, t in loader()]
    cut = loader()
    iterator = iter(cut)
    for _ in range(6):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(cut.state_dict())
    assert [(i["input_ids"].tolist(), list(t)) for i, t in resumed] == whole[6:]
