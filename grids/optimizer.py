"""Adam that touches only what a batch used: a grid with nodes of its own in every frame moves in the batch's frames."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.99), 1e-12


@dataclass
class RowState:
    """Running means of one tensor's gradient and its square, and how often each of its rows has moved."""

    mean: Tensor
    square: Tensor
    steps: Tensor  # (rows,)


@dataclass
class RowSparseAdam:
    """Adam (Kingma and Ba 2015) over tensors whose first axis is rows, each row with a step count of its own."""

    states: dict[str, RowState] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, name: str, values: Tensor, gradient: Tensor, rate: float, rows: Tensor | None = None) -> None:
        """One step of `values` (N, ...), in place; with rows (K,) only of those, gradient (K, ...)."""
        if name not in self.states or self.states[name].mean.shape != values.shape:
            counts = torch.zeros(len(values), device=values.device)
            self.states[name] = RowState(torch.zeros_like(values), torch.zeros_like(values), counts)
        state, whole = self.states[name], rows is None
        mean, square, steps = ((each if whole else each[rows]) for each in (state.mean, state.square, state.steps))
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        steps += 1
        shape = (-1, *(1,) * (values.dim() - 1))
        first, second = ((1 - beta**steps).view(shape) for beta in BETAS)
        change = mean / (square.sqrt().div_(second.sqrt()).add_(EPS) * first) * -rate
        if whole:
            values += change
        else:
            values.index_add_(0, rows, change)
            state.mean[rows], state.square[rows], state.steps[rows] = mean, square, steps

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {name: vars(state) for name, state in self.states.items()}

    def load_state_dict(self, saved: dict[str, dict[str, Tensor]]) -> None:
        self.states = {name: RowState(**tensors) for name, tensors in saved.items()}
