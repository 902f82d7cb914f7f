"""Know when the Trainer runs its training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch.strategies import Strategy


class AroundTrainingStep:
    """Calls back before and after every training step that the Trainer itself runs.

    Lightning has hooks for callbacks around a batch only, and within a batch the module is also run by others: probes
    and look-aheads of callbacks in evaluation mode or without gradients, replay of stored samples, a balancer's look at
    the losses after the step. So ``training_step`` of the Trainer's strategy, through which no one but the Trainer
    goes, is replaced on the instance until :meth:`remove`.

    Args:
        strategy: The Trainer's strategy.
        before: Called before every training step.
        after: Called after it, if it failed too.
    """

    def __init__(self, strategy: Strategy, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._strategy = cast(Any, strategy)
        self._replaced = strategy.__dict__.get("training_step")
        self._original: Callable[..., Any] = strategy.training_step
        self._callbacks: tuple[Callable[[], None], Callable[[], None]] | None = (before, after)
        self._strategy.training_step = self._run

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._callbacks is None:
            return self._original(*args, **kwargs)
        before, after = self._callbacks
        before()
        try:
            return self._original(*args, **kwargs)
        finally:
            after()

    def remove(self) -> None:
        """Give the strategy back its own method; below a replacement that came later, only fall silent."""
        self._callbacks = None
        if self._strategy.__dict__.get("training_step") != self._run:
            return
        if self._replaced is None:
            del self._strategy.training_step
        else:
            self._strategy.training_step = self._replaced
