"""A small tree in the layout of Med-MAT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

TABLE = """
| **No.**| **Modality** | **Area** | **Task** |
| ------ | ------- | -------- | -------- |
|01 | CT | Lung | COVID-19 |
|02 | CT | Brain | Cancer |
|03 | US | Breast | Cancer |
|04 | ct | lung | Cancer |
|05 | Ultrasound | Thyroid | Nodule |

| **No.** | **Name with link** | **Modality** | **Area** | **Task** |
| ------ | ------- | ------- | -------- | -------- |
| 1 |[A set](https://example.org/a?b=c)|X-Ray|Lung|COVID19|
"""
LABELS = ("covid", "healthy", "pneumonia", "scar", "other")


def write_med_mat(root: Path, subsets: int = 5, items: int = 20, test_files: tuple[int, ...] = (2,)) -> Path:
    """Write subsets whose items have the labels in turn, the first label twice as often as the others."""
    generator = np.random.default_rng(0)
    (root / "Aggregated_Subsets").mkdir(parents=True)
    for subset in range(1, subsets + 1):
        folder = root / "med-mat" / f"Set_{subset}"
        folder.mkdir(parents=True)
        for part in ("train", "test") if subset in test_files else ("train",):
            rows = []
            for number in range(items):
                name = f"{part}_{number}.PNG"
                Image.fromarray(generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(folder / name)
                rows.append(record(subset, number, f"med-mat/set_{subset}/{name.lower()}"))
            name = f"{'Subset' if subset % 2 else 'subset'}--{subset:02d}-{part}.json"
            (root / "Aggregated_Subsets" / name).write_text(json.dumps(rows))
    (root / "README.md").write_text(TABLE)
    return root


def record(subset: int, number: int, image: str) -> dict[str, str]:
    """Return a record in the form of the published files."""
    label = LABELS[max(0, number % 6 - 1)]
    options = [label, *(other for other in LABELS if other != label)][: 4 if subset < 3 else 2]
    place = number % len(options)
    options[0], options[place] = options[place], options[0]
    letters = "ABCD"
    lines = [f"{letter}: {option}" for letter, option in zip(letters, options, strict=False)]
    question = f"What does image kind {number % 2} show?"
    return {
        "id": f"{subset}-{number}",
        "caption": label,
        "image": image,
        "Question": question,
        "Answer": label,
        "Question-choice": "\n".join([question, *lines, "Answer with the option's letter."]),
        "Answer-choice": letters[place],
        "data-no": str(subset),
    }
