"""Tokenizers: loaded from a folder, or trained on the task's texts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule

from lightning_mtl.data.errors import DatasetNotFoundError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of a trained tokenizer; the position is the id."""


@runtime_checkable
class TokenizerLike(Protocol):
    """What the data modules ask of a tokenizer; those of ``transformers`` have it."""

    @property
    def pad_token_id(self) -> int | None:
        """Id of padding."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token before a text."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token after a text."""

    @property
    def unk_token_id(self) -> int | None:
        """Id of what is not in the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def __len__(self) -> int:
        """Return the number of tokens, added ones included."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many tokens are put around one text, or around two."""

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """Return one or two encoded texts with the special tokens around them."""


def check_vocabulary(datamodule: LightningDataModule, tokenizer: TokenizerLike) -> None:
    """Raise if the encoder of the Trainer's module knows fewer tokens than the tokenizer has.

    Args:
        datamodule: The data module, with its Trainer if it has one.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: If it does, with both numbers.
    """
    module = None if datamodule.trainer is None else datamodule.trainer.lightning_module
    encoder = getattr(module, "encoder", None)
    known = getattr(encoder, "vocab_size", None)
    if known is not None and len(tokenizer) > known:
        raise ValueError(
            f"{type(datamodule).__name__}: tokenizer must have at most the {known} tokens that the encoder "
            f"{type(encoder).__name__} knows, got {len(tokenizer)}; take the tokenizer of that model, "
            "or raise the encoder's vocab_size."
        )


def import_transformers(owner: str) -> Any:
    """Return the package ``transformers``.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{owner}: needs transformers; pip install lightning-mtl[nlp].") from error
    return transformers


def load_tokenizer(owner: str, folder: str | os.PathLike[str]) -> Any:
    """Return the tokenizer that ``save_pretrained`` wrote to a folder; nothing is downloaded.

    Args:
        owner: Name of the class that asks, for the error.
        folder: The folder.

    Raises:
        DatasetNotFoundError: If it is not there, or holds no tokenizer.
    """
    path = Path(folder).expanduser()
    remedy = (
        "tokenizer must be a local folder in the layout of save_pretrained, nothing is downloaded here: "
        "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) where there is a network, or leave tokenizer out "
        "to train one on the texts."
    )
    if not path.is_dir():
        raise DatasetNotFoundError(f"{owner}: tokenizer: '{path}' is not a folder. {remedy}")
    transformers = import_transformers(owner)
    try:
        return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
        reason = str(error).splitlines()[0]
        raise DatasetNotFoundError(
            f"{owner}: tokenizer: '{path}' holds no tokenizer that can be read ({reason}), it holds {found}. {remedy}"
        ) from error


_CHARACTERS = 1000
"""Most different characters that a WordPiece knows; others are unknown tokens."""


class TokenizerTraining:
    """How a tokenizer is trained on the training texts of the tasks.

    It has the special tokens ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]``, ``[MASK]`` with the ids 0 to 4, puts
    ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]`` around texts, and is the same for the same texts and settings.

    Args:
        vocab_size: Most tokens, special ones included; small sets of texts give fewer.
        model: ``"wordpiece"`` as in BERT (spaces and punctuation split words), or ``"bpe"``, byte pairs on bytes as in
            RoBERTa, which knows every character.
        lowercase: Whether upper case and accents are dropped; ``"wordpiece"`` only.
        min_frequency: How often a pair must occur to become a token.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        A WordPiece knows every character that may stand inside a word as a piece of its own, whether it does in the
        texts or not, which the trainer of ``tokenizers`` leaves to what it meets; that makes the ids reproducible.

    Example:
        >>> tokenizer = TokenizerTraining(vocab_size=60).train(["the cat sat", "the dog sat"] * 3)
        >>> tokenizer.convert_ids_to_tokens(tokenizer("the cat", "sat")["input_ids"])
        ['[CLS]', 'the', 'cat', '[SEP]', 'sat', '[SEP]']

    References:
        Wu et al. *Google's Neural Machine Translation System*. 2016. https://arxiv.org/abs/1609.08144 (WordPiece).
        Sennrich, Haddow, Birch. *Neural Machine Translation of Rare Words with Subword Units*. ACL 2016.
        https://arxiv.org/abs/1508.07909 (byte pair encoding).
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        model: Literal["wordpiece", "bpe"] = "wordpiece",
        lowercase: bool = True,
        min_frequency: int = 2,
    ) -> None:
        if vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(
                f"TokenizerTraining: vocab_size must be more than the {len(SPECIAL_TOKENS)} special tokens, "
                f"got {vocab_size}."
            )
        if model not in ("wordpiece", "bpe"):
            raise ValueError(f"TokenizerTraining: model must be 'wordpiece' or 'bpe', got {model!r}.")
        if min_frequency < 1:
            raise ValueError(f"TokenizerTraining: min_frequency must be at least 1, got {min_frequency}.")
        self.vocab_size = vocab_size
        self.model: Literal["wordpiece", "bpe"] = model
        self.lowercase = lowercase
        self.min_frequency = min_frequency

    def train(self, texts: Sequence[str]) -> Any:
        """Return a ``transformers.PreTrainedTokenizerFast`` trained on these texts.

        Raises:
            ValueError: If ``vocab_size`` is too small for the characters of the texts.
        """
        transformers = import_transformers("TokenizerTraining")
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

        pad, unknown, first, separator, mask = SPECIAL_TOKENS
        options: dict[str, Any] = {"min_frequency": self.min_frequency, "show_progress": False}
        if self.model == "wordpiece":
            normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
            alphabet = _alphabet(normalizer, texts)
            inner = [f"##{character}" for character in alphabet if _inside_words(character)]
            tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
            tokenizer.normalizer = normalizer
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            # the trainer numbers pieces as it meets them, in the order of a hash map that differs from run to run: only
            # with all single pieces numbered in advance are ids and merges the same every time
            trainer: Any = trainers.WordPieceTrainer(
                vocab_size=self._enough(len(SPECIAL_TOKENS) + len(inner) + len(alphabet)),
                special_tokens=[*SPECIAL_TOKENS, *inner],
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
                **options,
            )
            tokenizer.train_from_iterator(texts, trainer)
            tokenizer.model = models.WordPiece(vocab=tokenizer.get_vocab(), unk_token=unknown)
            trained = Tokenizer(tokenizer.model)  # without the inner pieces as special tokens
            trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
            trained.decoder = decoders.WordPiece()
            trained.add_special_tokens(list(SPECIAL_TOKENS))
            tokenizer = trained
        else:
            tokenizer = Tokenizer(models.BPE(unk_token=unknown))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            trainer = trainers.BpeTrainer(
                vocab_size=self._enough(len(SPECIAL_TOKENS) + len(alphabet)),
                special_tokens=list(SPECIAL_TOKENS),
                initial_alphabet=alphabet,
                **options,
            )
            tokenizer.train_from_iterator(texts, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {separator}",
            pair=f"{first} $A {separator} $B:1 {separator}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, separator)],
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=pad,
            unk_token=unknown,
            cls_token=first,
            sep_token=separator,
            mask_token=mask,
            padding_side="right",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )

    def _enough(self, needed: int) -> int:
        if self.vocab_size < needed:
            raise ValueError(
                f"TokenizerTraining: vocab_size must be at least the {needed} single characters and special tokens of "
                f"these texts, got {self.vocab_size}."
            )
        return self.vocab_size

    def settings(self) -> dict[str, Any]:
        """Return the arguments."""
        return {
            "vocab_size": self.vocab_size,
            "model": self.model,
            "lowercase": self.lowercase,
            "min_frequency": self.min_frequency,
        }


def _alphabet(normalizer: Any, texts: Sequence[str]) -> list[str]:
    """Return the characters that are left of the texts, at most the 1000 most frequent, sorted."""
    counts: Counter[str] = Counter()
    for character, count in Counter(itertools.chain.from_iterable(texts)).items():
        for left in normalizer.normalize_str(character):
            if not left.isspace():
                counts[left] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:_CHARACTERS])


def _inside_words(character: str) -> bool:
    """Return whether a character may stand inside a word, instead of being a word of its own."""
    return character.isalnum() if character.isascii() else not unicodedata.category(character).startswith("P")


def trained_tokenizer(owner: str, training: TokenizerTraining, texts: Sequence[str], cache: Path | None) -> Any:
    """Return the tokenizer of these texts, from the cache where it is there; else it is trained and put there.

    Args:
        owner: Name of the class that asks, for errors.
        training: How to train.
        texts: What to train on.
        cache: Folder of the cache; None keeps nothing on disk.
    """
    if cache is None:
        return training.train(texts)
    digest = hashlib.sha256(json.dumps([1, training.settings()], sort_keys=True).encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    folder = cache / "tokenizers" / digest.hexdigest()[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = folder.parent / f".{uuid.uuid4().hex}"
        training.train(texts).save_pretrained(str(building))
        try:
            building.rename(folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            if not folder.is_dir():  # not another process that was first
                raise
    return load_tokenizer(owner, folder)


def fingerprint(tokenizer: Any) -> str:
    """Return a hash of everything in a tokenizer that decides which ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest = hashlib.sha256()
    if backend is not None:
        content = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # left there by the last call
            content.pop(state, None)
        names = list(getattr(tokenizer, "model_input_names", []))
        special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
        digest.update(json.dumps([content, names, special], sort_keys=True).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
