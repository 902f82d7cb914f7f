"""Multi-task learning for PyTorch Lightning."""

from lightning_mtl.module import MultiTaskModule, NonFiniteLossError

__version__ = "0.1.0"

__all__ = ["MultiTaskModule", "NonFiniteLossError", "__version__"]
