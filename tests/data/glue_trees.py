"""Small stand-ins of GLUE's files, byte for byte in the format of the official archive."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = [
    *("the", "a", "dog", "cat", "man", "woman", "house", "runs", "sleeps", "sings"),
    *("old", "young", "red", "slowly", "not", "never", "again", "who", "where"),
]

HEADERS: dict[str, dict[str, str | None]] = {
    "CoLA": {"train": None, "dev": None, "test": "index sentence"},
    "SST-2": {"train": "sentence label", "dev": "sentence label", "test": "index sentence"},
    "MRPC": {
        "train": "Quality|#1 ID|#2 ID|#1 String|#2 String",
        "dev": "Quality|#1 ID|#2 ID|#1 String|#2 String",
        "test": "index|#1 ID|#2 ID|#1 String|#2 String",
    },
    "STS-B": {
        "train": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "dev": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "test": "index genre filename year old_index source1 source2 sentence1 sentence2",
    },
    "QQP": {
        "train": "id qid1 qid2 question1 question2 is_duplicate",
        "dev": "id qid1 qid2 question1 question2 is_duplicate",
        "test": "id question1 question2",
    },
    "MNLI": {
        "train": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
        "sentence2_parse sentence1 sentence2 label1 gold_label",
        **dict.fromkeys(
            ("dev_matched", "dev_mismatched"),
            "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
            "sentence2_parse sentence1 sentence2 label1 label2 label3 label4 label5 gold_label",
        ),
        **dict.fromkeys(
            ("test_matched", "test_mismatched"),
            "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
            "sentence2_parse sentence1 sentence2",
        ),
    },
    "QNLI": {
        "train": "index question sentence label",
        "dev": "index question sentence label",
        "test": "index question sentence",
    },
    "RTE": {"train": "index sentence1 sentence2 label", "dev": "index sentence1 sentence2 label"}
    | {"test": "index sentence1 sentence2"},
    "WNLI": {"train": "index sentence1 sentence2 label", "dev": "index sentence1 sentence2 label"}
    | {"test": "index sentence1 sentence2"},
}
"""Folder -> file -> header; None where the archive has no header."""

_LABELS = {
    "RTE": ("entailment", "not_entailment"),
    "QNLI": ("entailment", "not_entailment"),
    "MNLI": ("neutral", "contradiction", "entailment"),
}


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(3, 12)))


def _row(draw: random.Random, folder: str, columns: list[str], number: int) -> str:
    label = draw.choice(_LABELS.get(folder, ("0", "1")))
    values = {
        "index": str(3 * number),
        "id": str(3 * number),
        "mark": "" if label == "1" else "*",
        "score": f"{draw.choice([0, 1.4, 3.8, 5]):.3f}",
        **dict.fromkeys(("label", "Quality", "is_duplicate", "gold_label"), label),
        **{f"label{rater}": label for rater in range(1, 6) if folder == "MNLI"},
    }
    texts = ("sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String")
    ends = " " if folder == "SST-2" else ""
    return "\t".join(
        sentence(draw) + ends if column in texts else values.get(column, f"{column}{number}") for column in columns
    )


def write_glue(root: Path, folders: tuple[str, ...] = tuple(HEADERS), rows: int = 24, diagnostics: bool = True) -> Path:
    draw = random.Random(0)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file, header in HEADERS[folder].items():
            columns = ["source", "label", "mark", "sentence"] if header is None else _split(header)
            lines = [] if header is None else ["\t".join(columns)]
            lines += [_row(draw, folder, columns, n) for n in range(rows if file == "train" else 10)]
            mark = b"\xef\xbb\xbf" if folder == "MRPC" and file != "test" else b""
            (root / folder / f"{file}.tsv").write_bytes(mark + ("\n".join(lines) + "\n").encode())
    if diagnostics:
        (root / "diagnostic").mkdir(exist_ok=True)
        lines = ["index\tsentence1\tsentence2", *(f"{n}\t{sentence(draw)}\t{sentence(draw)}" for n in range(5))]
        (root / "diagnostic" / "diagnostic.tsv").write_text("\n".join(lines) + "\n")
    return root


def _split(header: str) -> list[str]:
    return header.split("|") if "|" in header else header.split()
