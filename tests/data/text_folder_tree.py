"""Small tables of text, one task of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from lightning_mtl.data.text import TextFolderTask

ROWS = 12
COLOURS = ["red", "green", "blue"]
ANIMALS = ["dog", "cat", "bird"]

TASKS = {
    "sentiment": TextFolderTask(texts=["text"], labels=["bad", "good"]),
    "similarity": TextFolderTask("regression", texts=["a", "b"], target="score", low=0, high=1),
    "entities": TextFolderTask("tagging", texts=["words"], target="tags", labels=["O", "COLOUR"]),
    "answer": TextFolderTask("span", texts=["question", "passage"], target=["start", "answer"]),
    "reply": TextFolderTask("choice", texts=["context"], choices=["first", "second"], target="right"),
    "search": TextFolderTask("pair", texts=["query", "document"], target=None),
    "summary": TextFolderTask("generation", texts=["source"], target="summary", max_length=12, start="cls"),
}


def row(draw: random.Random) -> dict[str, dict[str, Any]]:
    colour, animal = draw.choice(COLOURS), draw.choice(ANIMALS)
    text = f"the {colour} {animal} sleeps"
    return {
        "sentiment": {"text": text, "label": draw.choice(["bad", "good"])},
        "similarity": {"a": text, "b": f"a {animal}", "score": draw.random()},
        "entities": {"words": text.split(), "tags": ["O", "COLOUR", "O", "O"]},
        "answer": {
            "question": f"which colour is the {animal}?",
            "passage": f"the red {animal}",
            "start": 4,
            "answer": "red",
        },
        "reply": {"context": text, "first": "yes", "second": "no", "right": draw.randrange(2)},
        "search": {"query": f"{colour} {animal}", "document": text},
        "summary": {"source": text, "summary": f"{colour} {animal}"},
    }


def write_text_folder(root: Path) -> Path:
    draw = random.Random(0)
    for split, count in (("train", ROWS), ("val", 5), ("test", 5)):
        rows = [row(draw) for _ in range(count)]
        for task in TASKS:
            (root / task).mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(found[task]) + "\n" for found in rows)
            (root / task / f"{split}.jsonl").write_text(lines)
    return root
