"""``lightning-mtl subnet``: a network of chosen widths out of a controllable one, as an ONNX file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_mtl.controllable import ControllableModule, WidthConfig


def main(args: Sequence[str]) -> int:
    """Write the network of a configuration and print what it costs beside the full one.

    Args:
        args: Words of the command line behind ``subnet``.

    Returns:
        Exit status 0.

    Raises:
        SystemExit: With status 2 and one message, if the checkpoint or the options do not fit.
    """
    parser = _parser()
    options = parser.parse_args(args)
    try:
        if options.out.exists() and not options.force:
            raise FileExistsError(f"{options.out} exists; give another --out, or --force to overwrite it.")
        module = load(options.checkpoint)
        config = WidthConfig(
            tuple(options.encoder) if len(options.encoder) > 1 else options.encoder[0], decoders(options.decoder)
        )
        costs = {name: module.flops(of, options.input_size) for name, of in (("full", module.full), ("this", config))}
        small = module.export(config).eval()
        small.export_onnx(options.out, torch.zeros(2, *options.input_size))
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    parameters = {"full": module.export(module.full), "this": small}
    for name, cost in costs.items():
        count = sum(parameter.numel() for parameter in parameters[name].parameters())
        parts = ", ".join(f"{part} {value:,}" for part, value in cost.items())
        print(f"{name}: {sum(cost.values()):,} FLOPs a sample ({parts}), {count:,} parameters")
    print(options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-mtl subnet",
        description="Cut the network of chosen widths out of the checkpoint of a ControllableModule and write it as an "
        "ONNX file (extra `export`). lightning_mtl.controllable.search_widths finds widths for a budget.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a ControllableModule")
    parser.add_argument(
        "--encoder",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="WIDTH",
        help="width of the encoder, or one for each of its stages; 1 by default",
    )
    parser.add_argument(
        "--decoder", nargs="+", default=[], metavar="TASK=WIDTH", help="width of decoders; 1 where not given"
    )
    parser.add_argument(
        "--input-size", type=int, nargs="+", required=True, metavar="N", help="shape of one sample, e.g. 3 64 64"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    return parser


def load(checkpoint: Path) -> ControllableModule:
    """Return the module of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not the checkpoint of a controllable module, or does not say how it was built.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: there is no such file; name the .ckpt of a run.")
    try:
        module = ControllableModule.load_from_checkpoint(checkpoint, map_location="cpu")
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{checkpoint}: must be the checkpoint of a ControllableModule of parts of this package, got: {error}; for "
            "one with parts of your own call export() in Python."
        ) from error
    if not isinstance(module, ControllableModule):
        raise ValueError(
            f"{checkpoint}: must be the checkpoint of a ControllableModule, got one of {type(module).__name__}."
        )
    return module


def decoders(words: Sequence[str]) -> dict[str, float]:
    """Return task -> width of words ``TASK=WIDTH``.

    Raises:
        ValueError: If a word has another form.
    """
    found = {}
    for word in words:
        task, _, width = word.rpartition("=")
        try:
            found[task] = float(width)
        except ValueError:
            task = ""
        if not task:
            raise ValueError(f"--decoder must be TASK=WIDTH, got {word!r}.")
    return found
