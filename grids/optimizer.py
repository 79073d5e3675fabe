"""Adam that changes only what a batch used: of a grid with nodes in every frame, only the frames of the batch."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BETAS = (0.9, 0.99)  # Adam's decay rates per step, of the mean gradient and of the mean squared gradient
EPS = 1e-12  # Added to Adam's denominator.
PIECE = 1 << 16  # Numbers of a large tensor that are updated at once: all tensors of a piece fit into a core's cache.


@dataclass(frozen=True)
class StepRule:
    """How far a step may change the values of a tensor.

    rate: the learning rate; a tensor () if a recorded graph shall have another rate in each step. limits: lowest and
    highest value that remains. floor: share of a row's usual gradient that counts as the least gradient: values whose
    gradient is far below it take smaller steps, where Adam alone would move them at the full rate.
    """

    rate: float | Tensor
    limits: tuple[float, float] | None = None
    floor: float = 0.0


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
    def step(
        self,
        name: str,
        values: Tensor,
        gradients: Sequence[Tensor],
        rule: StepRule,
        rows: Tensor | None = None,
        run: Callable[[Callable[[slice], None], Iterable[slice]], Iterable[None]] = map,
    ) -> None:
        """Do one step of `values` (N, ...) in place.

        name: key of the tensor's state; a tensor of another shape under the same name starts anew. gradients: their sum
        is the gradient. rows (K,): change only these rows, whose gradients are (K, ...). run: calls a function for the
        pieces of a tensor that has one row.
        """
        if name not in self.states or self.states[name].mean.shape != values.shape:
            counts = torch.zeros(len(values), device=values.device)
            self.states[name] = RowState(torch.zeros_like(values), torch.zeros_like(values), counts)
        state = self.states[name]
        if rows is None:
            state.steps += 1
            corrections = self.corrections(state.steps, values.dim())
            if len(values) > 1:
                update(values, gradients, state.mean, state.square, corrections, rule)
                return
            flat = [tensor.detach().view(-1) for tensor in (values, state.mean, state.square)]
            flat_gradients = [gradient.reshape(-1) for gradient in gradients]
            scalars = corrections[0].view(1), corrections[1].view(1)

            def update_piece(piece: slice) -> None:
                values_piece, mean, square = (tensor[piece] for tensor in flat)
                update(values_piece, [each[piece] for each in flat_gradients], mean, square, scalars, rule)

            list(run(update_piece, pieces(values.numel(), values.device)))
            return
        mean, square, steps, chosen = state.mean[rows], state.square[rows], state.steps[rows] + 1, values[rows]
        update(chosen, gradients, mean, square, self.corrections(steps, values.dim()), rule)
        values[rows] = chosen
        state.mean[rows], state.square[rows], state.steps[rows] = mean, square, steps

    @staticmethod
    def corrections(steps: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
        """Return Adam's corrections of both running means after so many steps of each row, (N, 1, ...)."""
        shape = (-1, *(1,) * (dimensions - 1))
        first, second = ((1 - beta**steps).view(shape) for beta in BETAS)
        return first, second

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of every tensor, by name."""
        return {name: vars(state) for name, state in self.states.items()}

    def load_state_dict(self, state_dict: dict[str, dict[str, Tensor]]) -> None:
        """Replace the state by the result of an earlier `state_dict`."""
        self.states = {name: RowState(**tensors) for name, tensors in state_dict.items()}


def pieces(count: int, device: torch.device) -> list[slice]:
    """Divide so many numbers into pieces that fit into a core's cache; a GPU takes all of them at once."""
    if device.type != "cpu":
        return [slice(0, count)]
    return [slice(first, first + PIECE) for first in range(0, count, PIECE)]


@torch.no_grad()
def update(
    values: Tensor,
    gradients: Sequence[Tensor],
    mean: Tensor,
    square: Tensor,
    corrections: tuple[Tensor, Tensor],
    rule: StepRule,
) -> None:
    """Do one step of Adam in place: of the values and of the running means of the gradient and of its square.

    See `RowSparseAdam.step`; the first axis is rows, and a piece of a row has one axis.
    """
    gradient = functools.reduce(torch.add, gradients)
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = square.sqrt().div_(corrections[1].sqrt())
    if rule.floor:
        axes = tuple(range(1, denominator.dim())) or (0,)
        denominator.add_(rule.floor * denominator.square().mean(axes, keepdim=True).sqrt())
    denominator.add_(EPS).mul_(corrections[0] / rule.rate)
    values.addcdiv_(mean, denominator, value=-1)
    if rule.limits is not None:
        values.clamp_(*rule.limits)
