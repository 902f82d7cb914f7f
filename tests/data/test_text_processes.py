from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lightning_mtl.data.text import GLUEDataModule
from tests.data.glue_trees import write_glue
from tests.data.text_worker import BATCH, EPOCHS
from tests.processes import start

pytestmark = pytest.mark.xdist_group("processes")


def test_two_processes_share_the_rows_and_one_cache(tmp_path: Path) -> None:
    write_glue(tmp_path / "glue", ("RTE", "SST-2"), diagnostics=False)
    assert [process.wait(240) for process in start("tests.data.text_worker", str(tmp_path))] == [0, 0]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    # every validation row once over both, and batches of one task
    alone = GLUEDataModule(tmp_path / "glue", cache_dir=str(tmp_path / "cache"), num_workers=0)
    alone.setup("fit")
    val = alone.datasets["val"]
    expected = Counter(f"{val.place(row)[0]} {val[row][0]['input_ids'].tolist()}" for row in range(len(val)))
    assert Counter(row for rank in ranks for batch in rank["validated"] for row in batch) == expected
    # an epoch of training on both together: the steps of one pass, each of one task on both
    steps = ranks[0]["per_epoch"]
    assert steps == 48 // (2 * BATCH)
    assert [len(rank["trained"]) for rank in ranks] == [EPOCHS * steps] * 2
    for first, second in zip(*(rank["trained"] for rank in ranks), strict=True):
        assert {row.split()[0] for row in first + second} in ({"rte"}, {"sst2"})
        assert first != second
    # one set of files, also where both built it at the same time; no leftovers
    for folder, count in (("cache", 4), ("race", 6)):
        files = sorted(path.name for path in (tmp_path / folder / "tokens").iterdir())
        assert len(files) == count
        assert not any(name.startswith(".") for name in files)
        assert len(list((tmp_path / folder / "tokenizers").iterdir())) == 1
    assert sum(len(batch) for rank in ranks for batch in rank["raced"]) == len(val)
