"""Scalarizations along a preference vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class PreferenceWeighting(LossWeighting):
    """A scalarization with one preference a task, which may change between steps.

    To walk along the Pareto front, train one model for each preference vector, or draw a new one before each step (for
    instance from a Dirichlet distribution), hand it to :meth:`set_preferences` and to the model as an input.
    The preferences are state: a checkpoint holds them.
    """

    preferences: Tensor

    def _register_preferences(self, values: Mapping[str, float] | None) -> None:
        """Create the state; without values every task has the preference 1/K."""
        self.register_buffer("preferences", self._checked(values))

    def _checked(self, values: Mapping[str, float] | None) -> Tensor:
        vector = self._per_task("preferences", values, 1.0 / len(self.task_names))
        if not bool((vector >= 0).all()) or not bool(vector.isfinite().all()) or not bool((vector > 0).any()):
            raise ValueError(
                f"{type(self).__name__}: preferences must be finite, not negative, and not all zero, got {values}."
            )
        return vector

    def set_preferences(self, preferences: Mapping[str, float]) -> None:
        """Take other preferences from the next call on.

        Args:
            preferences: Task name -> preference, not negative and not all zero. With several processes, give all of
                them the same.

        Raises:
            ValueError: If a value is negative, all are zero, or a task is missing.
        """
        with torch.no_grad():
            self.preferences.copy_(self._checked(preferences))
