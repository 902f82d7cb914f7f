"""Any model of timm as an encoder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class TimmEncoder(nn.Module, Recorded):
    """Encode images with any timm model, as one pooled vector or as feature maps.

    Args:
        model_name: Name of the model in timm, with or without a tag of weights (``"resnet18"``,
            ``"resnet18.a1_in1k"``), or any address that timm understands (``"hf-hub:..."``, ``"local-dir:..."``).
        features: ``"pooled"`` for the vector that the model would classify, ``"maps"`` for feature maps, finest first.
        pretrained: Load the weights that timm publishes for this name; timm downloads and caches them.
        in_chans: Number of channels of the input images.
        out_indices: Which of the model's maps to return (``features="maps"`` only); negative ones count from the
            last. None takes timm's default: every stage of a convolutional model, the last blocks of a plain vision
            transformer, whose maps all have the stride of its patches.
        img_size: Image size, one number or height and width, for the models that are built for one size (vision
            transformers). None keeps the model's own.
        output_stride: Stride that a convolutional model must not exceed; its later stages are dilated instead
            (:class:`~lightning_mtl.nn.DeepLabV3PlusHead` wants 8 or 16). None keeps the model's own, usually 32.

    Shape:
        - inputs: ``(B, in_chans, H, W)``; returns ``(B, D)``, or a list of ``(B, D_i, H / s_i, W / s_i)``.

    Raises:
        ValueError: If timm knows no such model, or the model does not take one of the options; the message says which.

    Note:
        With ``features="maps"`` timm leaves out the layers behind the last map asked for. Maps of models that compute
        with the channels last (Swin) are returned with the channels first, like all others.

    Example:
        >>> encoder = TimmEncoder("resnet18", features="maps")
        >>> encoder.feature_spec
        FeatureSpec(kind='maps', channels=(64, 64, 128, 256, 512), strides=(2, 4, 8, 16, 32))

    References:
        Wightman. *PyTorch Image Models*. 2019. https://github.com/huggingface/pytorch-image-models
    """

    def __init__(
        self,
        model_name: str,
        features: Literal["pooled", "maps"] = "pooled",
        pretrained: bool = False,
        in_chans: int = 3,
        out_indices: Sequence[int] | None = None,
        img_size: int | tuple[int, int] | None = None,
        output_stride: Literal[8, 16, 32] | None = None,
    ) -> None:
        super().__init__()
        if features not in ("pooled", "maps"):
            raise ValueError(f"TimmEncoder: features must be 'pooled' or 'maps', got {features!r}.")
        if features == "pooled" and out_indices is not None:
            raise ValueError(
                f"TimmEncoder: out_indices needs features='maps', got out_indices={list(out_indices)} with "
                "features='pooled'; a pooled vector comes from the last layer."
            )
        _check_known(model_name)

        options: dict[str, Any] = {"img_size": img_size, "output_stride": output_stride}
        options = {name: value for name, value in options.items() if value is not None}
        if features == "maps":
            if out_indices is not None:
                options["out_indices"] = tuple(out_indices)
            options["features_only"] = True
        else:
            options["num_classes"] = 0
        self.model = _create(model_name, pretrained, in_chans, options)

        self.features = features
        self._channels_last = False
        if features == "maps":
            info = self.model.feature_info
            self._channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            self.feature_spec = FeatureSpec("maps", tuple(info.channels()), tuple(int(s) for s in info.reduction()))
        else:
            # Some models widen once more between the last stage and the classifier (MobileNetV3).
            width = getattr(self.model, "head_hidden_size", None) or self.model.num_features
            self.feature_spec = FeatureSpec("vector", (int(width),))

    def forward(self, inputs: Tensor) -> Tensor | list[Tensor]:
        """Return the pooled vector or the list of feature maps of a batch of images."""
        if self.features == "pooled":
            vector: Tensor = self.model(inputs)
            return vector
        maps: list[Tensor] = list(self.model(inputs))
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self._channels_last else maps

    def stages(self) -> list[nn.Module]:
        """Return the modules that lead from the input to the first map, from there to the second, and so on.

        Raises:
            ValueError: If the model is not a plain sequence of stages with feature maps (vision transformers, Swin).
        """
        from timm.models._features import FeatureDictNet

        if self.features != "maps" or self._channels_last or not isinstance(self.model, FeatureDictNet):
            raise ValueError(
                f"TimmEncoder: {type(self.model).__name__} with features={self.features!r} cannot be taken apart into "
                "stages; take features='maps' and a convolutional model (resnet, regnet, convnext, ...)."
            )
        stages: list[nn.Module] = []
        members: list[nn.Module] = []
        for name, member in self.model.items():
            members.append(member)
            if name in self.model.return_layers:
                stages.append(nn.Sequential(*members))
                members = []
        return stages


def _check_known(model_name: str) -> None:
    import timm

    if ":" in model_name or timm.is_model(model_name):
        return
    architecture = model_name.split(".")[0]
    close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "timm.list_models() lists them all."
    raise ValueError(f"TimmEncoder: model_name must be a model of timm {timm.__version__}, got {model_name!r}; {hint}")


def _create(model_name: str, pretrained: bool, in_chans: int, options: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(model_name, pretrained=pretrained, in_chans=in_chans, **options)
    except TypeError as error:
        # timm hands options on to the model's own constructor, which refuses the ones that it does not have.
        refused = [name for name in options if f"'{name}'" in str(error)]
        if not refused:
            raise
        raise ValueError(
            f"TimmEncoder: {model_name} takes no {refused[0]}, got {refused[0]}={options[refused[0]]!r}; leave it out."
        ) from error
