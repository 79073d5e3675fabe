"""Adam that changes only what a batch used: of a grid with nodes in every frame, only the frames of the batch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

BETAS = (0.9, 0.99)  # Adam's decay rates per step, of the mean gradient and of the mean squared gradient
EPS = 1e-12  # Added to Adam's denominator.


@dataclass
class RowState:
    """Running means of the gradient and the squared gradient of one tensor, and the number of steps of each row."""

    mean: Tensor
    square: Tensor
    steps: Tensor  # (rows,)


@dataclass
class RowSparseAdam:
    """Adam (Kingma and Ba 2015) for tensors whose first axis is rows. Each row has its own step count."""

    states: dict[str, RowState] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, name: str, values: Tensor, gradient: Tensor, rate: float, rows: Tensor | None = None) -> None:
        """Do one step of `values` (N, ...) in place, with the learning rate `rate`.

        name: key of the tensor's state; a tensor of another shape under the same name starts anew. rows (K,): change
        only these rows, whose gradient is (K, ...).
        """
        if name not in self.states or self.states[name].mean.shape != values.shape:
            counts = torch.zeros(len(values), device=values.device)
            self.states[name] = RowState(torch.zeros_like(values), torch.zeros_like(values), counts)
        state = self.states[name]
        mean, square, steps = state.mean, state.square, state.steps
        if rows is not None:
            mean, square, steps = mean[rows], square[rows], steps[rows]
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        steps += 1
        shape = (-1, *(1,) * (values.dim() - 1))
        mean_correction, square_correction = ((1 - beta**steps).view(shape) for beta in BETAS)
        change = mean / (square.sqrt().div_(square_correction.sqrt()).add_(EPS) * mean_correction) * -rate
        if rows is None:
            values += change
        else:
            values.index_add_(0, rows, change)
            state.mean[rows], state.square[rows], state.steps[rows] = mean, square, steps

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of every tensor, by name."""
        return {name: vars(state) for name, state in self.states.items()}

    def load_state_dict(self, state_dict: dict[str, dict[str, Tensor]]) -> None:
        """Replace the state by the result of an earlier `state_dict`."""
        self.states = {name: RowState(**tensors) for name, tensors in state_dict.items()}
