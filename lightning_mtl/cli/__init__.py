"""The command line: ``lightning-mtl fit|validate|test|predict|recipes|compare``."""

from lightning_mtl.cli.app import main

__all__ = ["main"]
