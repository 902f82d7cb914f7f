"""What the methods with one preference a task have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting


class PreferenceGradientWeighting(GradientWeighting):
    """A gradient method that can favour some tasks.

    Without a preference all present tasks count alike. The numbers of a given one are used as they are, also when tasks
    are absent. They are arguments, not state.
    """

    preference_values: Tensor

    def __init__(self, preference: Mapping[str, float] | None = None, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        check_preference(type(self).__name__, "preference", preference)
        self.preference = preference

    def _create_state(self, num_tasks: int) -> None:
        if self.preference is not None:
            self.register_buffer(
                "preference_values", self._per_task("preference", self.preference, 0.0), persistent=False
            )

    def preference_of(self, rows: list[int]) -> Tensor | None:
        """Return the numbers of these tasks, None if no preference was given."""
        return None if self.preference is None else take(self.preference_values, rows)


def check_preference(owner: str, argument: str, values: Mapping[str, float] | None) -> None:
    """Refuse numbers that are negative, not finite, or all zero.

    Raises:
        ValueError: If they are.
    """
    if values is None:
        return
    numbers = list(values.values())
    if any(not (number >= 0 and math.isfinite(number)) for number in numbers) or not any(numbers):
        raise ValueError(f"{owner}: {argument} must be finite, not negative, and not all zero, got {dict(values)}.")
