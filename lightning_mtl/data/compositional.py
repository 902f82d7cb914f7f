"""Data sets described by named factors, and the pools from which a target can be recombined."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator

from lightning_mtl.data.samplers import mix_seed


class Triplet(NamedTuple):
    """Modality, anatomical area and task of a data set: the factors that a registry has by default.

    Args:
        modality: How the images were taken.
        area: What they show.
        task: What is asked about them.

    Example:
        >>> Triplet("CT", "Lung", "Cancer")._asdict()
        {'modality': 'CT', 'area': 'Lung', 'task': 'Cancer'}
    """

    modality: str
    area: str
    task: str


class CompositionRegistry:
    """Names of data sets, each with a value for every factor.

    Values are compared after white space at the ends is cut, case is folded, and the alias table is applied.

    Args:
        factors: Names of the factors, one or more.
        aliases: Factor -> other spelling -> value that it stands for; compared without case, too.

    Raises:
        ValueError: If there is no factor, one comes twice, or the aliases name another.

    Example:
        >>> registry = CompositionRegistry(aliases={"modality": {"US": "Ultrasound"}})
        >>> registry.add("a", modality="US", area="Breast", task="Cancer")
        >>> registry.add("b", modality="ultrasound ", area="Thyroid", task="Cancer")
        >>> registry.shared("a", "b")
        ('modality', 'task')

    References:
        Cai, Chen, Wang, Wang, Deng, Song, Chen, Zhang, Wang. *Exploring Compositional Generalization of
        Multimodal LLMs for Medical Imaging*. ACL 2025.
        https://arxiv.org/abs/2412.20070.
    """

    def __init__(
        self,
        factors: Sequence[str] = Triplet._fields,
        aliases: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.factors = tuple(factors)
        if not self.factors or len(set(self.factors)) != len(self.factors):
            raise ValueError(f"CompositionRegistry: factors must be one or more different names, got {list(factors)}.")
        if unknown := sorted(set(aliases or {}) - set(self.factors)):
            raise ValueError(f"CompositionRegistry: aliases must be for {list(self.factors)}, got {unknown}.")
        self._aliases = {
            factor: {_folded(other): _folded(value) for other, value in table.items()}
            for factor, table in (aliases or {}).items()
        }
        self._values: dict[str, dict[str, str]] = {}

    def __len__(self) -> int:
        """Return the number of data sets."""
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which they were added."""
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        """Return whether a data set of this name was added."""
        return name in self._values

    def add(self, name: str, **values: str) -> None:
        """Add a data set.

        Args:
            name: Its name, not given before.
            values: Its value for every factor.

        Raises:
            ValueError: If the name was given before, or the values are not those of all factors.
        """
        if name in self._values:
            raise ValueError(f"CompositionRegistry: a data set named {name!r} was added before; choose another name.")
        self._values[name] = self.normalized(values, repr(name))

    def normalized(self, values: Mapping[str, str], owner: str = "a data set") -> dict[str, str]:
        """Return the values in the form in which they are compared, in the order of the factors.

        Args:
            values: Factor -> value.
            owner: What the values belong to, for the message.

        Raises:
            ValueError: If a factor is missing, unknown or empty.
        """
        if set(values) != set(self.factors) or not all(_folded(value) for value in values.values()):
            raise ValueError(
                f"CompositionRegistry: {owner} must have a value for each of {list(self.factors)} and no other, got "
                f"{dict(values)}."
            )
        folded = {factor: _folded(values[factor]) for factor in self.factors}
        return {factor: self._aliases.get(factor, {}).get(value, value) for factor, value in folded.items()}

    def values(self, name: str) -> dict[str, str]:
        """Return factor -> value of a data set, in the form in which values are compared.

        Raises:
            ValueError: If there is no data set of this name.
        """
        if name not in self._values:
            raise ValueError(f"CompositionRegistry: unknown data set {name!r}; the known ones are {list(self)}.")
        return dict(self._values[name])

    def shared(self, first: str, second: str) -> tuple[str, ...]:
        """Return the factors in which two data sets have the same value."""
        one, other = self.values(first), self.values(second)
        return tuple(factor for factor in self.factors if one[factor] == other[factor])

    def merged(self) -> dict[tuple[str, ...], list[str]]:
        """Return the data sets of every combination of values that occurs."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name, values in self._values.items():
            found.setdefault(tuple(values.values()), []).append(name)
        return found

    def split(
        self, target: str | Mapping[str, str] | Triplet, allow_shared: Sequence[int] | None = None
    ) -> CompositionalSplit:
        """Return the pools for a target; see :class:`CompositionalSplit`."""
        return CompositionalSplit(self, target, allow_shared)


class CompositionalSplit:
    """Which data sets a target can be learned from without being seen.

    The pool holds every data set that is not the target's combination itself; further data sets with the same
    combination never count. All lists are in the order of the registry.

    Args:
        registry: The data sets.
        target: Name of one of them, or the values of a combination.
        allow_shared: Numbers of factors that a related data set may share with the target; None allows any. With
            ``(1,)`` none shares more than one, so the target has to be recombined.

    Raises:
        ValueError: If the target is unknown, or a number is not between 1 and one less than the factors.

    Note:
        The paper describes the choice of related data sets by examples; the definitions of related, unrelated,
        covering and composable are this package's.

    Example:
        >>> registry = CompositionRegistry()
        >>> for name, values in {
        ...     "brain": ("CT", "Brain", "Cancer"), "covid": ("CT", "Lung", "Covid"), "skin": ("Photo", "Skin", "Type"),
        ... }.items():
        ...     registry.add(name, **Triplet(*values)._asdict())
        >>> split = CompositionalSplit(registry, Triplet("CT", "Lung", "Cancer"))
        >>> split.related(), split.unrelated(), split.covering_pairs(), split.is_composable()
        (['brain', 'covid'], ['skin'], [('brain', 'covid')], True)

    References:
        Cai, Chen, Wang, Wang, Deng, Song, Chen, Zhang, Wang. *Exploring Compositional Generalization of
        Multimodal LLMs for Medical Imaging*. ACL 2025.
        https://arxiv.org/abs/2412.20070.
    """

    def __init__(
        self,
        registry: CompositionRegistry,
        target: str | Mapping[str, str] | Triplet,
        allow_shared: Sequence[int] | None = None,
    ) -> None:
        self.registry = registry
        if isinstance(target, str):
            self.target = registry.values(target)
        else:
            named = target._asdict() if isinstance(target, Triplet) else target
            self.target = registry.normalized(named, "the target")
        most = len(registry.factors) - 1
        if allow_shared is not None and not set(allow_shared) <= set(range(1, most + 1)):
            raise ValueError(
                f"CompositionalSplit: allow_shared must hold numbers from 1 to {most}, got {list(allow_shared)}; leave "
                "it None for any number."
            )
        self._shared = {name: self._common(name) for name in registry}
        allowed = set(range(most + 1)) if allow_shared is None else {0, *allow_shared}
        self._pool = [name for name, common in self._shared.items() if len(common) in allowed]

    def _common(self, name: str) -> frozenset[str]:
        values = self.registry.values(name)
        return frozenset(factor for factor, value in self.target.items() if values[factor] == value)

    def related(self) -> list[str]:
        """Return the data sets that share a factor with the target, as many as are allowed."""
        return [name for name in self._pool if self._shared[name]]

    def unrelated(self) -> list[str]:
        """Return the data sets that share nothing with the target."""
        return [name for name in self._pool if not self._shared[name]]

    def covering_pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of data sets of which every factor of the target occurs in at least one."""
        return [
            pair
            for pair in itertools.combinations(self.related(), 2)
            if len(self._shared[pair[0]] | self._shared[pair[1]]) == len(self.registry.factors)
        ]

    def without(self, factor: str) -> list[str]:
        """Return the pool less the data sets that share this factor with the target: the composition is broken.

        Raises:
            ValueError: If the factor is unknown.
        """
        if factor not in self.registry.factors:
            raise ValueError(
                f"CompositionalSplit: factor must be one of {list(self.registry.factors)}, got {factor!r}."
            )
        return [name for name in self._pool if factor not in self._shared[name]]

    def is_composable(self) -> bool:
        """Return whether every factor of the target occurs somewhere in the pool."""
        return frozenset().union(*(self._shared[name] for name in self._pool)) == set(self.registry.factors)

    def pool(self, condition: str = "all", seed: int = 0) -> list[str]:
        """Return the pool of a named condition.

        Args:
            condition: ``"all"``; ``"related"``; ``"unrelated"``; ``"without:<factor>"``; ``"random:<factor>"``, as many
                data sets as ``"without:<factor>"`` leaves, drawn from all; ``"none"``, nothing.
            seed: Seed of what is drawn.

        Raises:
            ValueError: If there is no such condition.
        """
        kind, _, factor = condition.partition(":")
        if kind in ("without", "random") and factor:
            kept = self.without(factor)
            if kind == "without":
                return kept
            order = torch.randperm(len(self._pool), generator=Generator().manual_seed(mix_seed(seed, len(kept))))
            return [self._pool[index] for index in sorted(order[: len(kept)].tolist())]
        fixed = {"all": list(self._pool), "related": self.related(), "unrelated": self.unrelated(), "none": []}
        if condition not in fixed:
            raise ValueError(
                "CompositionalSplit: condition must be 'all', 'related', 'unrelated', 'none', 'without:<factor>' or "
                f"'random:<factor>', got {condition!r}."
            )
        return fixed[condition]


def _folded(value: str) -> str:
    """Return a value without case, and with single spaces inside and none outside."""
    return " ".join(str(value).split()).casefold()
