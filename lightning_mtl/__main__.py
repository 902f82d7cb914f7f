"""``python -m lightning_mtl`` is the command line."""

import sys

from lightning_mtl.cli import main

if __name__ == "__main__":
    sys.exit(main())
