"""Small stand-ins of SuperGLUE, SICK and EmoBank in the files' own format."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "man",
    "woman",
    "dog",
    "cat",
    "house",
    "river",
    "runs",
    "sleeps",
    "sings",
    "old",
    "young",
    "red",
    "slowly",
    "not",
    "never",
    "again",
]
SIZES = {"train": 24, "val": 8, "test": 6}
SPLITS = tuple(SIZES)


def sentence(draw: random.Random, words: int = 7) -> str:
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + "."


def _boolq(draw: random.Random, idx: int) -> dict[str, Any]:
    return {
        "question": sentence(draw, 5).lower()[:-1],
        "passage": f"River -- {sentence(draw, 12)}",
        "idx": idx,
        "label": draw.random() < 0.6,
    }


def _cb(draw: random.Random, idx: int) -> dict[str, Any]:
    label = draw.choice(["entailment", "contradiction", "neutral"])
    return {"premise": sentence(draw), "hypothesis": sentence(draw, 4), "label": label, "idx": idx}


def _copa(draw: random.Random, idx: int) -> dict[str, Any]:
    return {
        "premise": sentence(draw),
        "choice1": sentence(draw, 4),
        "choice2": sentence(draw, 5),
        "question": draw.choice(["cause", "effect"]),
        "label": draw.randrange(2),
        "idx": idx,
    }


def _rte(draw: random.Random, idx: int) -> dict[str, Any]:
    label = draw.choice(["entailment", "not_entailment"])
    return {"premise": sentence(draw), "hypothesis": sentence(draw, 4), "label": label, "idx": idx}


def _wic(draw: random.Random, idx: int) -> dict[str, Any]:
    first, second = f"{sentence(draw, 3)[:-1]} place.", f"Place {sentence(draw, 4).lower()}"
    return {
        "word": "place",
        "sentence1": first,
        "sentence2": second,
        "idx": idx,
        "label": draw.random() < 0.5,
        "start1": len(first) - 6,
        "start2": 0,
        "end1": len(first) - 1,
        "end2": 5,
        "version": 1.1,
    }


def _wsc(draw: random.Random, idx: int) -> dict[str, Any]:
    text = f"Mark told Mr. Singer {sentence(draw, 4).lower()} He should have been more skeptical."
    spans = {"span2_index": 8, "span1_index": 2, "span1_text": "Mr. Singer", "span2_text": "He"}
    return {"text": text, "target": spans, "idx": idx, "label": draw.random() < 0.5}


def _multirc(draw: random.Random, idx: int) -> dict[str, Any]:
    questions = [
        {
            "question": f"{sentence(draw, 4)[:-1]}?",
            "answers": [
                {"text": sentence(draw, 2), "idx": 10 * idx + 5 * q + a, "label": draw.randrange(2)} for a in range(3)
            ],
            "idx": 2 * idx + q,
        }
        for q in range(2)
    ]
    return {"idx": idx, "version": 1.1, "passage": {"text": sentence(draw, 20), "questions": questions}}


SUPERGLUE: dict[str, tuple[str, Callable[[random.Random, int], dict[str, Any]]]] = {
    "boolq": ("BoolQ", _boolq),
    "cb": ("CB", _cb),
    "copa": ("COPA", _copa),
    "multirc": ("MultiRC", _multirc),
    "rte": ("RTE", _rte),
    "wic": ("WiC", _wic),
    "wsc": ("WSC", _wsc),
}


def superglue_lines(task: str, split: str) -> Iterator[dict[str, Any]]:
    """The lines of a file: the test split has no labels, and the numbers of a split begin at 0."""
    _, line = SUPERGLUE[task]
    draw = random.Random(f"{task} {split}")
    for idx in range(SIZES[split] // (3 if task == "multirc" else 1)):
        row = line(draw, idx)
        if split == "test":
            row.pop("label", None)
            for question in row.get("passage", {}).get("questions", []) if task == "multirc" else []:
                for answer in question["answers"]:
                    del answer["label"]
        yield row


def write_superglue(root: Path) -> Path:
    for task, (folder, _) in SUPERGLUE.items():
        (root / folder).mkdir(parents=True)
        for split in SPLITS:
            lines = (json.dumps(row) + "\n" for row in superglue_lines(task, split))
            (root / folder / f"{split}.jsonl").write_text("".join(lines))
    return root


def write_sick(root: Path) -> Path:
    root.mkdir(parents=True)
    names = {"train": "SICK_train", "val": "SICK_trial", "test": "SICK_test_annotated"}
    for split, name in names.items():
        draw, end = random.Random(split), "\r\n" if split == "test" else "\n"
        lines = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
        for number in range(SIZES[split]):
            label = draw.choice(["NEUTRAL", "ENTAILMENT", "CONTRADICTION"])
            first, second = sentence(draw)[:-1], sentence(draw)[:-1]
            lines.append(f"{10 * number + len(split)}\t{first}\t{second}\t{draw.randint(10, 50) / 10:g}\t{label}")
        (root / f"{name}.txt").write_bytes((end.join(lines) + end).encode())
    return root


def write_emobank(root: Path) -> Path:
    """Sentences with three or four ratings a side, one of them all ones, and an id without text."""
    folder, draw = root / "corpus", random.Random(0)
    folder.mkdir(parents=True)
    splits = [name for split, name in zip(SPLITS, ("train", "dev", "test"), strict=True) for _ in range(SIZES[split])]
    ids = [f"doc{number}_{number}_{number + 40}" for number in range(len(splits))] + ["lost_0_9"]
    rated: dict[str, dict[str, list[tuple[int, ...]]]] = {}
    for side in ("reader", "writer"):
        rated[side] = {i: [tuple(draw.choices([2, 3, 4, 5], k=3)) for _ in range(draw.randint(3, 4))] for i in ids}
        rated[side][ids[0]].append((1, 1, 1))
    for side, ratings in rated.items():
        with (folder / f"individual_{side}_ratings.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("id", "V", "A", "D"), *((i, *row) for i, rows in ratings.items() for row in rows)]
            )
        with (folder / f"{side}.csv").open("w", newline="") as file:
            rows = [(i, *means(ratings[i]), *spreads(ratings[i]), len(meant(ratings[i]))) for i in ids]
            header = ("id", "V", "A", "D", "stdV", "stdA", "stdD", "N")
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([header, *rows])
    with (folder / "emobank.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "split", "V", "A", "D", "text"))
        for i, split in zip(ids[:-1], splits, strict=True):
            both = means(rated["reader"][i] + rated["writer"][i])
            text = f'"{sentence(draw)}\u2028 it\u2019s {i}'
            writer.writerow((i, split, *both, text))
    genres = ["blog", "fiction", "SemEval"]
    lines = [f"{i}\t{i.split('_')[0]}\t{genres[n % 3]}\t \n" for n, i in enumerate(ids)]
    (folder / "meta.tsv").write_text("id\tdocument\tcategory\tsubcategory\n" + "".join(lines))
    return root


def meant(ratings: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [rating for rating in ratings if rating != (1, 1, 1)]


def means(ratings: list[tuple[int, ...]]) -> list[float]:
    kept = meant(ratings)
    return [round(sum(rating[k] for rating in kept) / len(kept), 2) for k in range(3)]


def spreads(ratings: list[tuple[int, ...]]) -> list[float]:
    kept = meant(ratings)
    centre = [sum(rating[k] for rating in kept) / len(kept) for k in range(3)]
    return [round((sum((r[k] - centre[k]) ** 2 for r in kept) / len(kept)) ** 0.5, 2) for k in range(3)]
