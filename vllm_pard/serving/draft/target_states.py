"""The target's hidden states of a step, where CUDA graphs of the draft can read them.

T target rows · W width of all states of a row together
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class TargetStates:
    """Keeps a step's hidden states in a tensor of fixed place: vLLM's own lie elsewhere with each of its graphs.

    For drafts that read the target (PARD-2, arXiv 2605.08632); others have none.
    """

    def __init__(self, max_num_rows: int, device: torch.device) -> None:
        self.max_num_rows = max_num_rows
        self.device = device
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The last step's states. [max rows, W] in the target's dtype; rows beyond the step's are older ones."""
        if self._rows is None:
            raise ValueError("the target's hidden states are read before its first step")
        return self._rows

    def take(self, states: Sequence[Tensor]) -> None:
        """Copy the states of a step, [>= T, any] each, side by side in their order.

        Raises ValueError if there are more rows than vLLM schedules, or other widths than before.
        """
        num_rows, width = len(states[0]), sum(part.shape[1] for part in states)
        if self._rows is None:  # the first step is vLLM's own, ahead of all captures
            self._rows = torch.zeros(self.max_num_rows, width, dtype=states[0].dtype, device=self.device)
        if num_rows > self.max_num_rows or width != self._rows.shape[1]:
            raise ValueError(
                f"hidden states {num_rows} x {width} do not fit the buffer of {tuple(self._rows.shape)}: "
                "take the same layers in each step"
            )
        torch.cat(tuple(states), dim=1, out=self._rows[:num_rows])
