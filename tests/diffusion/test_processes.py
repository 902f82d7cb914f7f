"""Two processes on halves of a batch train a diffusion model like one process on the whole batch."""

from __future__ import annotations

import pytest
import torch

from tests.processes import start

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]
Found = dict[str, dict[str, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("diffusion")
    worker = "tests.diffusion.processes_worker"
    runs = start(worker, str(folder / "one"), world=1) + start(worker, str(folder / "two"))
    for run in runs:
        assert run.wait(timeout=600) == 0
    files = {"one": "one.0", "first": "two.0", "second": "two.1"}
    return {key: torch.load(folder / name, weights_only=True) for key, name in files.items()}


@pytest.mark.parametrize("name", ["equal", "uncertainty", "pcgrad", "nash"])
@pytest.mark.parametrize("rank", ["first", "second"])
def test_two_processes_end_where_one_ends(name: str, rank: str, found: Found) -> None:
    one, two = found["one"][name], found[rank][name]
    assert set(one) == set(two)
    assert any("average" in key for key in one)
    for key in set(one) - {"drawn", "affinity"}:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-9)


def test_processes_that_were_seeded_alike_draw_different_timesteps(found: Found) -> None:
    drawn = [found[rank]["equal"]["drawn"] for rank in ("one", "first", "second")]
    assert drawn[0].equal(drawn[1])
    assert not drawn[1].equal(drawn[2])


@pytest.mark.parametrize("rank", ["first", "second"])
def test_affinity_is_that_of_the_joined_samples(rank: str, found: Found) -> None:
    expected = found["one"]["equal"]["affinity"]
    assert expected.shape == (4, 4)
    torch.testing.assert_close(found[rank]["equal"]["affinity"], expected, rtol=0, atol=1e-9)
