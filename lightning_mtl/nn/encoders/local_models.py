"""Models of the package transformers from a local folder, or of a kind with random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mtl.nn.encoders.lora import LoRA


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


class LocalModel:
    """Mixin of encoders around a model of transformers, which is their ``model``."""

    model: Any

    def hold(self, network: Any, lora: LoRA | None, gradient_checkpointing: bool) -> None:
        """Take a model as the encoder's own.

        Args:
            network: The model.
            lora: Train low-rank adapters and keep the model's own weights as they are; None trains all weights.
            gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        """
        if gradient_checkpointing:
            enable = getattr(network, "activation_checkpointing_enable", None)  # its name from transformers 5 on
            (enable or network.gradient_checkpointing_enable)({"use_reentrant": False})
        self.model = network if lora is None else lora.apply(network)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model as transformers does, adapters added to its weights.

        Args:
            directory: Folder to write; as the argument ``model`` with ``pretrained=True`` the class reads it.
        """
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(str(directory))
