"""Registries of factors and the pools of a target."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from lightning_mtl.data import CompositionalSplit, CompositionRegistry, Triplet

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "compositional-split.json").read_text())["cases"]


def registry_of(rows: list[tuple[str, str, str]]) -> CompositionRegistry:
    registry = CompositionRegistry()
    for number, row in enumerate(rows):
        registry.add(str(number), **Triplet(*row)._asdict())
    return registry


@pytest.mark.parametrize("case", GOLDEN, ids=[str(number) for number in range(len(GOLDEN))])
def test_pools_are_those_of_the_golden_vectors(case: dict[str, dict[str, list[list[str]]]]) -> None:
    rows = case["inputs"]["triplets"]
    split = CompositionalSplit(registry_of(rows), Triplet(*case["inputs"]["target"]))
    expected = case["expected"]
    assert [rows[int(name)] for name in split.related()] == expected["related"]
    assert [rows[int(name)] for name in split.unrelated()] == expected["unrelated"]
    pairs = [[rows[int(a)], rows[int(b)]] for a, b in split.covering_pairs()]
    assert pairs == expected["covering_pairs"]
    assert split.is_composable() == expected["target_is_composable"]


def test_pools_of_random_registries_follow_from_the_definitions() -> None:
    stream = random.Random(0)
    for _ in range(50):
        rows = [tuple(stream.choice(values) for values in ("ab", "cde", "fgh")) for _ in range(9)]
        target = rows[0]
        split = CompositionalSplit(registry_of(rows), Triplet(*target), allow_shared=(1,))
        count = [sum(x == y for x, y in zip(row, target, strict=True)) for row in rows]
        assert split.related() == [str(i) for i in range(9) if count[i] == 1]
        assert split.unrelated() == [str(i) for i in range(9) if count[i] == 0]
        assert split.pool() == [str(i) for i in range(9) if count[i] < 2]
        for place, factor in enumerate(Triplet._fields):
            kept = [str(i) for i in range(9) if count[i] < 2 and rows[i][place] != target[place]]
            assert split.without(factor) == split.pool(f"without:{factor}") == kept
            drawn = split.pool(f"random:{factor}", seed=3)
            assert len(drawn) == len(kept)
            assert set(drawn) <= set(split.pool())
            assert drawn == split.pool(f"random:{factor}", seed=3)
        # two data sets that share one factor each cannot cover three
        assert split.covering_pairs() == []


def test_the_grid_of_27_has_the_pools_of_the_experiment() -> None:
    registry = registry_of([tuple(map(str, values)) for values in itertools.product(range(3), repeat=3)])
    split = registry.split(Triplet("1", "2", "0"), allow_shared=(1,))
    sizes = {c: len(split.pool(c)) for c in ("all", "related", "unrelated", "without:task", "none")}
    assert sizes == {"all": 20, "related": 12, "unrelated": 8, "without:task": 16, "none": 0}
    assert split.is_composable()


def test_case_space_and_aliases_do_not_tell_values_apart() -> None:
    registry = CompositionRegistry(aliases={"modality": {"us": "Ultrasound"}})
    registry.add("a", modality="X-Ray", area="Lung", task="COVID")
    registry.add("b", modality=" x-ray", area="LUNG", task="Covid ")
    registry.add("c", modality="US", area="Lung  tissue", task="covid")
    registry.add("d", modality="ultrasound", area="lung tissue", task="other")
    assert registry.merged()[("x-ray", "lung", "covid")] == ["a", "b"]
    assert registry.shared("c", "d") == ("modality", "area")
    # a data set with the target's combination never counts, whatever its spelling
    assert registry.split("a").pool() == ["c", "d"]
    assert registry.split("a").pool("related") == ["c"]


def test_factors_may_be_others_than_three() -> None:
    registry = CompositionRegistry(("language", "domain"))
    for name, language, domain in (("a", "de", "law"), ("b", "de", "news"), ("c", "fr", "law"), ("d", "fr", "news")):
        registry.add(name, language=language, domain=domain)
    split = registry.split({"language": "DE", "domain": "law"})
    assert split.covering_pairs() == [("b", "c")]
    assert split.unrelated() == ["d"]
    assert (len(registry), list(registry), "a" in registry) == (4, ["a", "b", "c", "d"], True)


def test_a_target_that_lacks_a_factor_in_the_pool_is_not_composable() -> None:
    registry = registry_of([("a", "c", "f"), ("a", "d", "g"), ("b", "c", "g")])
    assert not registry.split("0").is_composable()
    assert registry.split(Triplet("a", "c", "g")).is_composable()
    assert not CompositionRegistry().split(Triplet("a", "b", "c")).is_composable()


def test_wrong_arguments_say_what_is_wrong() -> None:
    registry = registry_of([("a", "c", "f")])
    with pytest.raises(ValueError, match=r"factors must be one or more different names, got \['x', 'x'\]"):
        CompositionRegistry(("x", "x"))
    with pytest.raises(ValueError, match=r"aliases must be for .*, got \['organ'\]"):
        CompositionRegistry(aliases={"organ": {}})
    with pytest.raises(ValueError, match=r"'n' must have a value for each of .*task.*got \{'modality': 'a'\}"):
        registry.add("n", modality="a")
    with pytest.raises(ValueError, match=r"named '0' was added before"):
        registry.add("0", **Triplet("a", "b", "c")._asdict())
    with pytest.raises(ValueError, match=r"unknown data set 'q'; the known ones are \['0'\]"):
        registry.split("q")
    with pytest.raises(ValueError, match=r"allow_shared must hold numbers from 1 to 2, got \[3\]"):
        registry.split("0", allow_shared=(3,))
    with pytest.raises(ValueError, match=r"factor must be one of .*, got 'organ'"):
        registry.split("0").without("organ")
    with pytest.raises(ValueError, match=r"condition must be 'all'.*got 'without'"):
        registry.split("0").pool("without")
