"""Entry point of the command line, and training from configuration files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import lightning_mtl
from lightning_mtl.callbacks.results_table import ResultsTable
from lightning_mtl.cli import affinity, benchmark, compare, recipes, subnet
from lightning_mtl.cli.errors import ConciseParser, fail
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError, EmptySplitError

_OTHER_COMMANDS = {
    "recipes": recipes.main,
    "compare": compare.main,
    "benchmark": benchmark.main,
    "affinity": affinity.main,
    "subnet": subnet.main,
}
_EPILOG = (
    "Five further subcommands: recipes, to list the configuration files that come with the package or copy one; "
    "compare, to put finished runs side by side; benchmark, to train one recipe with several balancers and seeds, and "
    "its single-task baselines; affinity, to choose from a run with the TaskAffinity callback which tasks to train "
    "together; subnet, to cut a network of chosen widths out of a controllable one. They have their own --help."
)
_FAILURES = (MisconfigurationException, DatasetNotFoundError, DataFileError, EmptySplitError)
"""Errors of a run that the user can mend by its settings or data; their message says all there is to say."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Words of the command line behind the program's name; None takes those of the process.

    Returns:
        Exit status: 0 when all went well.

    Raises:
        SystemExit: With status 2 and one message, if an option, a configuration file or a data set is wrong; with
            status 0 after ``--help``. ``JSONARGPARSE_DEBUG=true`` in the environment shows the traceback instead.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in _OTHER_COMMANDS:
        return _OTHER_COMMANDS[words[0]](words[1:])
    run(words)
    return 0


def run(words: list[str]) -> MultiTaskCLI:
    """Fit, validate, test or predict, and return the command line with the trainer, model and data that it made.

    Args:
        words: Words of the command line behind the program's name.

    Raises:
        SystemExit: As :func:`main` does.
    """
    try:
        return MultiTaskCLI(words)
    except _FAILURES as error:
        fail(error)


class MultiTaskCLI(LightningCLI):
    """Lightning's command line for any LightningModule and LightningDataModule.

    Models, data modules and their parts are named by class path. A :class:`~lightning_mtl.callbacks.ResultsTable` takes
    part in every run; its options are below ``results`` in a configuration file. The seed is 0 unless given.

    Args:
        args: Words of the command line, or a configuration as a mapping.
    """

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lightning-mtl",
                "description": "Multi-task learning with PyTorch Lightning.",
                "epilog": _EPILOG,
                "version": lightning_mtl.__version__,
            },
            parser_class=ConciseParser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the results table."""
        parser.add_lightning_class_args(ResultsTable, "results")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words that were handed in, whatever the process was started with."""
        self.config = parser.parse_args(args) if isinstance(args, list) else parser.parse_object(args)

    def before_instantiate_classes(self) -> None:
        """Name the run after its configuration files."""
        settings = self.config[self.subcommand]
        if settings.results.name is None:
            files = [Path(os.fspath(file)) for file in settings.get("config") or []]
            settings.results.name = "+".join(file.stem for file in files) or None

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a refusal of one of their constructors ends in one message."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError) as error:
            fail(error)
