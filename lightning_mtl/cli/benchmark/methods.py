"""Balancers as words of a command line."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from lightning_mtl import balancers

_ENDINGS = ("LossWeighting", "Weighting", "MTL")


@dataclass(frozen=True)
class Method:
    """A balancer with its arguments.

    Args:
        label: Its name in tables.
        class_path: Where to import its class.
        arguments: Those of its constructor that were given.
    """

    label: str
    class_path: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder of its runs: the label, without what file systems do not like."""
        return re.sub(r"[^\w.=,+-]+", "_", self.label).strip("_")


def short_names() -> dict[str, list[str]]:
    """Return the name of every balancer class with the short names that it has besides, all in lower case.

    There is no list of names: they follow from those of the classes. A short name is the class's name without its
    ending ``LossWeighting``, ``Weighting`` or ``MTL``; or, where it ends in ``Weighting``, its capital letters.

    Example:
        >>> names = short_names()
        >>> names["UncertaintyWeighting"], names["RandomLossWeighting"], names["NashMTL"], names["DWA"]
        (['uncertainty', 'uw'], ['random', 'rlw'], ['nash'], [])
    """
    names = {}
    for name in balancers.__all__:
        cls = getattr(balancers, name)
        if not (inspect.isclass(cls) and issubclass(cls, balancers.Balancer)) or inspect.isabstract(cls):
            continue
        stem = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
        initials = "".join(re.findall("[A-Z]", name)) if name.endswith("Weighting") else ""
        found = [word.lower() for word in (stem, initials) if len(word) > 1]
        names[name] = [word for word in dict.fromkeys(found) if word != name.lower()]
    return names


def known_names() -> str:
    """Return all balancers for a message, their short names in brackets."""
    return ", ".join(f"{name} ({', '.join(short)})" if short else name for name, short in sorted(short_names().items()))


def read_methods(words: Sequence[str]) -> list[Method]:
    """Return the balancers that these words name.

    A word is the name of a class of :mod:`lightning_mtl.balancers` in any case, with or without hyphens and
    underscores, or one of its short names (see :func:`short_names`); the path of any other class; or the path of a YAML
    file with ``class_path`` and ``init_args``, which gives the name in tables. Behind a colon a class may have
    arguments, ``nash:every_n_steps=25,max_norm=2`` or ``nash:{every_n_steps: 25}``.

    Args:
        words: One a balancer.

    Raises:
        ValueError: If a name is unknown or fits several classes, a word or file has another form, or two words would
            get the same name in tables.

    Example:
        >>> read_methods(["uw", "nash-mtl:every_n_steps=25"])  # doctest: +NORMALIZE_WHITESPACE
        [Method(label='UncertaintyWeighting', class_path='lightning_mtl.balancers.UncertaintyWeighting', arguments={}),
         Method(label='NashMTL(every_n_steps=25)', class_path='lightning_mtl.balancers.NashMTL',
                arguments={'every_n_steps': 25})]
    """
    methods: list[Method] = []
    for word in words:
        method = _from_file(Path(word)) if word.endswith((".yaml", ".yml")) else _from_word(word)
        for other in methods:
            if method.folder.lower() == other.folder.lower():
                raise ValueError(
                    f"--balancers: {word!r} would be named {method.label!r} in tables, as another one is; leave one "
                    "out, or put it into a YAML file, whose name it then gets."
                )
        methods.append(method)
    return methods


def _from_file(file: Path) -> Method:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--balancers: {file}: must be a YAML file ({error}).") from error
    if not isinstance(content, dict) or "class_path" not in content or set(content) - {"class_path", "init_args"}:
        raise ValueError(f"--balancers: {file}: must hold class_path and, if need be, init_args, got {content!r}.")
    return Method(file.stem, _class_path(str(content["class_path"])), dict(content.get("init_args") or {}))


def _from_word(word: str) -> Method:
    name, colon, rest = word.partition(":")
    path = _class_path(name)
    label = path.rpartition(".")[2]
    if not colon:
        return Method(label, path)
    arguments = _arguments(word, rest)
    given = ",".join(f"{key}={_compact(value)}" for key, value in arguments.items())
    return Method(f"{label}({given})", path, arguments)


def _arguments(word: str, text: str) -> dict[str, Any]:
    try:
        if text.startswith("{"):
            arguments = yaml.safe_load(text)
        else:
            pairs = [part.partition("=") for part in text.split(",")]
            if not all(key.isidentifier() and equals for key, equals, _ in pairs):
                raise ValueError("each argument needs the form name=value")
            arguments = {key: yaml.safe_load(value) for key, _, value in pairs}
        if not isinstance(arguments, dict):
            raise ValueError("the part behind the colon is no mapping")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"--balancers: {word!r} must have its arguments as NAME:key=value,key=value or NAME:{{key: value}} "
            f"({error})."
        ) from error
    return {str(key): value for key, value in arguments.items()}


def _compact(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _class_path(name: str) -> str:
    if "." in name:
        return name
    wanted = re.sub("[-_]", "", name).lower()
    names = short_names()
    matches = [cls for cls, short in names.items() if wanted == cls.lower() or wanted in short]
    if len(matches) > 1:
        matches = [cls for cls in matches if wanted == cls.lower()] or matches
    if len(matches) == 1:
        return f"lightning_mtl.balancers.{matches[0]}"
    if matches:
        raise ValueError(f"--balancers: {name!r} may be {' or '.join(matches)}; write the name of the class.")
    every = [word for cls, short in names.items() for word in (cls.lower(), *short)]
    close = difflib.get_close_matches(wanted, every, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"--balancers: no balancer is named {name!r}.{hint} Known are {known_names()}, or a class path.")
