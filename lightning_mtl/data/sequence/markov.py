"""Text of a random Markov chain, repeated so that attention pays off."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split
from lightning_mtl.data.samplers import mix_seed

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}
_CHAIN = 3


class MarkovCopy(Dataset[Sample]):
    r"""Sequences of a Markov chain followed by exact copies of themselves.

    Every token has a few random successors with probabilities proportional to :math:`U(0, 1) + 0.2`; the first token is
    uniform. The chain is a function of the seed alone, the sequences of (seed, split). A model that knows the chain
    predicts the first part as well as the chain's entropy allows; only one that attends to the first part predicts the
    copies.

    Args:
        num_samples: Number of sequences.
        split: Splits are disjoint random streams over the same chain; ``predict`` is ``test``.
        vocab_size: Number of tokens V.
        successors: Number of tokens that can follow a token.
        length: Number of tokens before the copies.
        copies: How often they are repeated; 0 gives plain Markov text.
        seed: Seed of chain and sequences.

    Shape:
        - inputs: ``(L - 1,)`` int64 with ``L = length * (1 + copies)``; target ``next_token``: ``(L - 1,)``, the inputs
          moved by one.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> text = MarkovCopy(num_samples=1, length=4)
        >>> bool(text.tokens[0, :4].equal(text.tokens[0, 4:]))
        True
        >>> round(text.entropy(), 3)  # nats per predicted token that no model can save
        0.561
    """

    def __init__(
        self,
        num_samples: int,
        split: Split = "train",
        vocab_size: int = 32,
        successors: int = 4,
        length: int = 16,
        copies: int = 1,
        seed: int = 0,
    ) -> None:
        if not 1 <= successors <= vocab_size:
            raise ValueError(f"MarkovCopy: successors must be in 1..vocab_size={vocab_size}, got {successors}.")
        if length < 1 or copies < 0 or length * (1 + copies) < 2:
            raise ValueError(
                "MarkovCopy: a sequence must have at least 2 tokens, length >= 1 and copies >= 0, got "
                f"length={length}, copies={copies}."
            )
        chain = Generator().manual_seed(mix_seed(seed, _CHAIN))
        chosen = torch.rand(vocab_size, vocab_size, generator=chain).argsort(dim=1)[:, :successors]
        weights = torch.rand(vocab_size, successors, generator=chain, dtype=torch.float64) + 0.2
        self.length = length
        self.copies = copies
        self.transitions = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
        self.transitions.scatter_(1, chosen, weights / weights.sum(dim=1, keepdim=True))
        stream = Generator().manual_seed(mix_seed(seed, _STREAMS[split]))
        states = [torch.randint(vocab_size, (num_samples,), generator=stream)]
        for _ in range(length - 1):
            if num_samples:
                states.append(torch.multinomial(self.transitions[states[-1]], 1, generator=stream)[:, 0])
        self.tokens = torch.stack(states, dim=1).repeat(1, 1 + copies)

    def entropy(self) -> float:
        """Return the mean loss of the best possible model in nats: it knows the chain and finds the copies."""
        per_state = -torch.special.xlogy(self.transitions, self.transitions).sum(dim=1)
        distribution = torch.full((len(self.transitions),), 1 / len(self.transitions), dtype=torch.float64)
        total = 0.0
        for _ in range(self.length - 1):
            total += float(distribution @ per_state)
            distribution = distribution @ self.transitions
        return total / (self.length * (1 + self.copies) - 1)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        """Return a sequence without its last token, and without its first."""
        tokens: Tensor = self.tokens[index]
        return tokens[:-1], {"next_token": tokens[1:]}


class MarkovCopyDataModule(MultiTaskDataModule):
    """Markov text with copies for next-token prediction; generated, needs no files.

    Args:
        vocab_size: Number of tokens.
        successors: Number of tokens that can follow a token.
        length: Number of tokens before the copies.
        copies: How often they are repeated; 0 gives plain Markov text.
        num_train: Number of training sequences.
        num_val: Number of validation sequences.
        num_test: Number of test sequences, which are the prediction sequences too.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; the sequences are in memory and need none.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of chain, sequences and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Must be None: a sequence is its own label.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = MarkovCopyDataModule(num_train=8, num_val=2, num_test=2, batch_size=4)
        >>> data.setup("fit")
        >>> tokens, targets = next(iter(data.train_dataloader()))
        >>> tokens.shape, targets["next_token"].shape
        (torch.Size([4, 31]), torch.Size([4, 31]))
    """

    tasks = ("next_token",)

    def __init__(
        self,
        vocab_size: int = 32,
        successors: int = 4,
        length: int = 16,
        copies: int = 1,
        num_train: int = 2400,
        num_val: int = 256,
        num_test: int = 256,
        *,
        batch_size: int = 16,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        self.vocab_size = vocab_size
        self.successors = successors
        self.length = length
        self.copies = copies
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> dict[str, float]:
        """No target can be left out."""
        return {}

    def make_dataset(self, split: Split) -> MarkovCopy:
        """Return the sequences of a split."""
        return MarkovCopy(
            self.lengths[split], split, self.vocab_size, self.successors, self.length, self.copies, self.seed
        )
