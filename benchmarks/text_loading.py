"""Our text loader with cached tokens against the same done by hand with transformers: SST-2 and RTE of GLUE.

By hand: the tokens are made once and kept in memory as lists, as ``datasets.map(tokenizer)`` leaves them, and a
``torch.utils.data.DataLoader`` shuffles them, with ``transformers.DataCollatorWithPadding`` as its ``collate_fn``; one
loader a task, drawn in proportion. With ``--grouped`` a sampler of batches of similar lengths is added by hand, so that
both pad about the same. Ours reads the tokens from the Arrow cache through :class:`GLUEDataModule`. The two take turns
in one process, a turn is the same number of batches of the same size, and what is compared is the CPU time of a sample
and of a token that is no padding.

The second table is the start of a run: reading the files and making the tokens, against a repeat with the cache.

Usage: python benchmarks/text_loading.py --root /datasets/glue [--rounds 7] [--batches 200] [--batch-size 32]
Prints one JSON line a round, and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import DataCollatorWithPadding

from lightning_mtl.data.text import GLUEDataModule

TASKS = ("sst2", "rte")


class Grouped(BatchSampler):
    """Batches of similar lengths: windows of 50 batches sorted, batches shuffled."""

    def __init__(self, lengths: list[int], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths, batch_size

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths)).tolist()
        window = 50 * self.batch_size
        for start in range(0, len(order), window):
            rows = sorted(order[start : start + window], key=self.lengths.__getitem__)
            batches = [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]
            yield from (batches[number] for number in torch.randperm(len(batches)).tolist())


def by_hand(data: GLUEDataModule, batch_size: int, grouped: bool) -> Iterator[Any]:
    """Yield batches without end."""
    collate = DataCollatorWithPadding(data.tokenizer)
    loaders, weights = [], []
    for task in TASKS:
        (records,) = data.read(task, "train")
        columns = [list(column) for column in zip(*records.texts, strict=True)]
        tokens = data.tokenizer(*columns, truncation=True, max_length=data.max_length)
        form = data.forms()[task]
        rows = [
            {**{name: tokens[name][row] for name in tokens}, "labels": form.encode(target)}
            for row, target in enumerate(records.targets)
        ]
        weights.append(float(len(rows)))
        lengths = [len(row["input_ids"]) for row in rows]
        sampler = (
            {"batch_sampler": Grouped(lengths, batch_size)}
            if grouped
            else {"sampler": RandomSampler(rows), "batch_size": batch_size, "drop_last": True}
        )
        loaders.append(DataLoader(rows, collate_fn=collate, **sampler))
    iterators = [iter(loader) for loader in loaders]
    while True:
        task = int(torch.multinomial(torch.tensor(weights), 1))
        try:
            yield next(iterators[task])
        except StopIteration:
            iterators[task] = iter(loaders[task])


def ours(data: GLUEDataModule) -> Iterator[Any]:
    """Yield batches without end."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def turn(batches: Iterator[Any], count: int, inputs: Callable[[Any], Any]) -> tuple[float, int, int]:
    """Return CPU seconds, samples and tokens of some batches."""
    samples = tokens = 0
    begin = time.process_time()
    found = [next(batches) for _ in range(count)]
    seconds = time.process_time() - begin
    for batch in found:
        samples += len(inputs(batch)["input_ids"])
        tokens += int(inputs(batch)["attention_mask"].sum())
    return seconds, samples, tokens


def start_up(root: Path, cache: str) -> tuple[float, GLUEDataModule]:
    """Return seconds from nothing to a loader."""
    data = GLUEDataModule(root, TASKS, cache_dir=cache, num_workers=0)
    begin = time.perf_counter()
    data.prepare_data()
    data.setup("fit")
    data.train_dataloader()
    return time.perf_counter() - begin, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        first, _ = start_up(options.root, cache)
        again, _ = start_up(options.root, cache)
        print(json.dumps({"start": first, "repeated start": again}), flush=True)
        data = GLUEDataModule(
            options.root, TASKS, cache_dir=cache, num_workers=0, batch_size=options.batch_size, pin_memory=False
        )
        data.setup("fit")
        sides: dict[str, tuple[Iterator[Any], Callable[[Any], Any]]] = {
            "ours": (ours(data), lambda batch: batch[0]),
            "by hand": (by_hand(data, options.batch_size, grouped=False), lambda batch: batch),
            "by hand, grouped": (by_hand(data, options.batch_size, grouped=True), lambda batch: batch),
        }
        for batches, read in sides.values():  # everything is read once
            turn(batches, 20, read)
        rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(options.rounds):
            for side, (batches, read) in sides.items():
                seconds, samples, tokens = turn(batches, options.batches, read)
                rates[side].append((samples / seconds, tokens / seconds))
            print(json.dumps({"round": number, **{side: found[-1] for side, found in rates.items()}}), flush=True)
    print("\n| loader | samples / CPU s | tokens / CPU s | ours / it, samples | ours / it, tokens |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for side, found in rates.items():
        medians = [statistics.median(pair[unit] for pair in found) for unit in (0, 1)]
        ratios = [
            statistics.median(mine[unit] / other[unit] for mine, other in zip(rates["ours"], found, strict=True))
            for unit in (0, 1)
        ]
        print(f"| {side} | {medians[0]:.0f} | {medians[1]:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"\nStart: {first:.1f} s with tokenizer and tokens to make, {again:.2f} s with both in the cache.")


if __name__ == "__main__":
    main()
