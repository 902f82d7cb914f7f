"""Where figures go: to the loggers that take them, and into the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish_figure(trainer: pl.Trainer, name: str, figure: Figure) -> Path:
    """Give a matplotlib figure to every logger that takes figures or images, and write it as a PNG file.

    Call it on all processes; the first one writes.

    Args:
        trainer: The Trainer whose loggers and folder are used. Without a logger the folder is the default root.
        name: Name in the loggers, and of the file; slashes become hyphens there.
        figure: A figure, made with ``matplotlib.figure.Figure`` so that no window system is involved.

    Returns:
        Path of the file.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is exchanged between the processes
    path = folder / f"{name.replace('/', '-')}.png"
    if not trainer.is_global_zero:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        log_image = getattr(logger, "log_image", None)
        if callable(add_figure):
            add_figure(name, figure, trainer.global_step, close=False)
        elif callable(log_image):
            log_image(key=name, images=[str(path)], step=trainer.global_step)
    return path
