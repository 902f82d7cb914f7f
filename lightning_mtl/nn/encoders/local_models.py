"""Models of the package transformers from a local folder, or of a kind with random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_settings(owner: str, model: str, pretrained: bool, changes: Mapping[str, Any], example: str = "bert") -> Any:
    """Return the configuration of a model with changes; nothing is downloaded.

    Args:
        owner: Name of the class that asks, for errors.
        model: Folder of a model, or a kind of model where it is not to be pretrained.
        pretrained: Whether the folder must hold weights.
        changes: Entries of the configuration to change.
        example: A kind of model, for the error.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        ValueError: If there is no such model here, or a change names no entry.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{owner} needs `pip install lightning-mtl[nlp]`.") from error
    if not Path(model).exists() and not pretrained and model in CONFIG_MAPPING:
        found = AutoConfig.for_model(model)
    else:
        try:
            found = AutoConfig.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError) as error:
            kind = "" if pretrained else f", or with pretrained=False a kind of model such as '{example}'"
            raise ValueError(
                f"{owner}: model must be a folder with config.json as save_pretrained writes it{kind}, got "
                f"{model!r}, which is not on this machine; nothing is downloaded."
            ) from error
    unknown = sorted(name for name in changes if not hasattr(found, name))
    if unknown:
        raise ValueError(
            f"{owner}: config has the unknown entries {unknown} for a model of kind {found.model_type!r}; "
            f"known are {sorted(found.to_dict())}."
        )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def build_model(owner: str, auto: str, model: str, pretrained: bool, settings: Any) -> Any:
    """Return a model in training mode.

    Args:
        owner: Name of the class that asks, for errors.
        auto: Name of the class of transformers that builds it, such as ``"AutoModel"``.
        model: Folder of the model.
        pretrained: Load the weights in the folder; otherwise they are drawn at random.
        settings: What :func:`model_settings` gave.

    Raises:
        ValueError: If there are no weights to load, or ``auto`` does not build this kind of model.
    """
    import transformers

    factory: Any = getattr(transformers, auto)
    if not pretrained:
        return factory.from_config(settings).train()
    try:
        return factory.from_pretrained(model, config=settings, local_files_only=True).train()
    except OSError as error:
        raise ValueError(
            f"{owner}: model={model!r} holds a configuration and no weights; set pretrained=False, or give a folder as "
            "save_pretrained writes it."
        ) from error


def save_model(model: Any, directory: str | Path) -> None:
    """Write a model as transformers does, adapters added to its weights.

    Args:
        model: The model, with adapters of peft or without.
        directory: Folder to write.
    """
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(str(directory))
