"""A start that bends: displacements of a mapping that follow the flow of all frames together.

No transform per frame fits an animal that runs, and gradient steps hardly find its displacements, because atlases that
are averaged over wrong places pull back. Here the displacements solve a robust linear least-squares problem: points
that the flow connects, over several distances in time, and points that are matched directly between frames far apart
have the same place in the atlas, and displacements are smooth. It is solved by conjugate gradients over the nodes of
all levels of the mapping at once, which act as a multigrid, with a preconditioner, and by weights that are computed
again a few times (Cauchy; iteratively reweighted least squares)."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.layers import MAX_RIGID_RESIDUAL
from alignment.tracks import PointPairs, nearest_pixels, track_points
from grids.fields import Grid, finest_nodes, sample_nodes, sum_at_nodes
from grids.model import GridModel
from grids.smoothness import Smoothness
from unwrap_utils import Video

SPACING_PX = 8  # Pixels between the points from which the flow is followed.
DISTANCES = (1, 2, 4, 8, 16, 32)  # Frames over which it is followed.
MOST_POINTS = 500_000  # Most points of an object over all pairs of frames.
BACKGROUND_POINTS = 100_000  # Most points of the background: it is larger than an object, and bends less.
# Weight of a point that is matched directly; one that follows the flow has weight 1. For objects it is small, because
# what turns or bends looks different after many frames. The background stays the same, and these matches alone tie what
# is hidden for a while.
MATCH_WEIGHT = 0.5
BACKGROUND_MATCH_WEIGHT = 2.0
OUTLIERS_PX = (10.0, 5.0, 3.0)  # Residuals in pixels above these have little weight, from the first round to the last.
BENDING, STRETCH = 0.05, 0.001  # Weights of the squared second and first differences of displacements between nodes.
ANCHOR = 0.001  # Weight of squared displacements, without which the whole layer could shift.
STEPS = 20  # Steps of conjugate gradients in each round.
SMOOTHNESS_CURVATURE = 10.0  # Usual second derivative of the smoothness by one node, for the preconditioner.
# Factor by which displacements that follow the flow must enlarge the distances of direct matches for a layer to count
# as rigid. They grew 4 to 9 times where layers are rigid, 1.5 times where water moves before a bank, and shrank with
# parallax.
LEAST_GROWTH = 2.0
PAIRS_AT_ONCE = 32  # Pairs of frames whose points `FlowEnergy.start_offsets` maps at once, to save memory.
ROWS_AT_ONCE = 8  # Rows of points of the same frame that share one copy of its displacements when they are sampled.
LEAST_MATCHED_PAIRS = 3  # Fewest pairs of frames whose direct matches may say that a layer is rigid.
LEAST_POINTS = 6  # Fewest points of a pair of frames that count.


@dataclass
class Connections:
    """Points of one layer and where they are in other frames: at most N points for each of P pairs of frames."""

    source: Tensor  # (P,) frame numbers
    target: Tensor  # (P,)
    start_px: Tensor  # (P, 2, N) positions (x, y) in the source frame
    end_px: Tensor  # (P, 2, N) positions of the same points in the target frame
    weight: Tensor  # (P, N); padding has weight 0

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, in the order in which they are declared."""
        return tuple(getattr(self, each.name) for each in fields(self))

    def part(self, pairs: slice | Tensor) -> "Connections":
        """Return the connections of some pairs, by their positions."""
        return Connections(*(values[pairs] for values in self.tensors()))


# Source, target, points (n, 2), their ends (n, 2), and the weight of a point.
Row = tuple[int, int, NDArray, NDArray, float]


def follow_lattice(
    video: Video,
    is_visible: NDArray[np.bool_],
    distances: tuple[int, ...] = DISTANCES,
    most_points: int = MOST_POINTS,
) -> list[Row]:
    """Follow a lattice of points of a layer along valid flow, over these numbers of frames; see `fit_to_flow`.

    most_points: over all pairs of frames; of more, an even part is taken.
    """
    frames, height, width = video.size
    half = SPACING_PX // 2
    rows, columns = np.mgrid[half:height:SPACING_PX, half:width:SPACING_PX].reshape(2, -1)
    points = np.stack((columns, rows), axis=1).astype(float)
    found: list[Row] = []
    for t in range(frames - 1):
        here = points[is_visible[t, rows, columns]]
        positions, validities = track_points(video, t, here, max(distances))
        for distance, end, is_valid in zip(range(1, len(positions) + 1), positions, validities, strict=True):
            if distance not in distances:
                continue
            x, y, is_inside = nearest_pixels(end, (height, width))
            good = is_valid & is_inside & is_visible[t + distance, y, x]
            if good.sum() >= LEAST_POINTS:
                found.append((t, t + distance, here[good], end[good], 1.0))
    step = -(-sum(len(row[2]) for row in found) // most_points) or 1
    if step > 1:
        for number, (source, target, start, end, weight) in enumerate(found):
            # Copies, because a part of an array would keep the whole one in memory.
            found[number] = source, target, start[::step].copy(), end[::step].copy(), weight
    return found


def list_visible_matches(matches: PointPairs, is_visible: NDArray[np.bool_], weight: float) -> list[Row]:
    """Return the direct matches of distant frames both of whose ends show the layer. is_visible: (T, H, W).

    The flow is a little too short everywhere, which adds up over many frames. Matches have no such error. weight: of
    each point.
    """
    found: list[Row] = []
    each = zip(matches.source, matches.target, matches.start_px, matches.end_px, matches.weight > 0, strict=True)
    for source, target, start, end, chosen in each:
        for t, points in ((source, start), (target, end)):
            x, y, is_inside = nearest_pixels(points, is_visible.shape[1:])
            chosen = chosen & is_inside & is_visible[t, y, x]
        if chosen.sum() >= LEAST_POINTS:
            found.append((int(source), int(target), start[chosen], end[chosen], weight))
    return found


def split_rows(rows: list[Row], most_points: int) -> list[Row]:
    """Split rows into rows of at most `most_points` points, because `join_rows` pads all rows to the longest one."""
    return [
        (source, target, start[first : first + most_points], end[first : first + most_points], weight)
        for source, target, start, end, weight in rows
        for first in range(0, len(start), most_points)
    ]


def join_rows(rows: list[Row]) -> Connections:
    """Pad points and their ends of different numbers to tensors."""
    most = max((len(start) for _, _, start, _, _ in rows), default=0)
    joined = Connections(
        torch.tensor([row[0] for row in rows], dtype=torch.long),
        torch.tensor([row[1] for row in rows], dtype=torch.long),
        torch.zeros(len(rows), 2, most),
        torch.zeros(len(rows), 2, most),
        torch.zeros(len(rows), most),
    )
    for index, (_, _, start, end, weight) in enumerate(rows):
        joined.start_px[index, :, : len(start)] = torch.from_numpy(start.T)
        joined.end_px[index, :, : len(end)] = torch.from_numpy(end.T)
        joined.weight[index, : len(start)] = weight
    return joined


@dataclass
class RowsByFrame:
    """R rows of N points, each row in one frame, in G groups of up to ROWS_AT_ONCE rows of the same frame.

    To sample a group at once needs one copy of the frame's displacements instead of one for each row.
    """

    frames: Tensor  # (G,) of each group
    points_px: Tensor  # (G, 2, ROWS_AT_ONCE * N); groups with fewer rows are padded with zeros
    places: Tensor  # (R,) of each row among those of all groups

    def sample(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Interpolate values at nodes (T, C, ny, nx) of all frames, of (H, W) pixels, at all points, (R, C, N)."""
        sampled = sample_nodes(values.index_select(0, self.frames), self.points_px, size)
        return sampled.unflatten(2, (ROWS_AT_ONCE, -1)).transpose(1, 2).flatten(0, 1).index_select(0, self.places)


def group_by_frame(frames: Tensor, points_px: Tensor) -> RowsByFrame:
    """Group rows of points (R, 2, N) by their frames (R,)."""
    rows_of_frame = frames.bincount()
    order = frames.argsort(stable=True)
    rank = torch.empty_like(frames)  # of each row among those of its frame
    rank[order] = torch.arange(len(frames)) - (rows_of_frame.cumsum(0) - rows_of_frame)[frames[order]]
    groups_of_frame = rows_of_frame.add(ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    group = (groups_of_frame.cumsum(0) - groups_of_frame)[frames] + rank // ROWS_AT_ONCE
    places = group * ROWS_AT_ONCE + rank % ROWS_AT_ONCE
    group_frames = torch.arange(len(rows_of_frame)).repeat_interleave(groups_of_frame)
    rows = points_px.new_zeros(len(group_frames) * ROWS_AT_ONCE, *points_px.shape[1:])
    rows[places] = points_px
    grouped = rows.unflatten(0, (len(group_frames), ROWS_AT_ONCE)).transpose(1, 2).flatten(2)
    return RowsByFrame(group_frames, grouped, places)


class FlowEnergy:
    """The least-squares problem of one layer, as a function of the values at the nodes of its mapping's grids."""

    def __init__(self, model: GridModel, layer: int, pairs: Connections, bending: float = BENDING):
        """bending: weight of squared second differences of displacements."""
        self.pairs, self.size = pairs, model.shape.size
        self.grids: list[Grid] = model.fields_by_name()[f"mappings.{layer}"]
        scale = model.texels_per_pixel(layer)
        self.pair_scale, self.frame_scale = scale[pairs.source][:, None, None], scale[:, None, None, None]
        self.lattice = finest_nodes(self.grids, self.size[1:])
        self.smooth = Smoothness(self.lattice.shape, bending, STRETCH, ANCHOR)
        self.all_frames = torch.arange(self.size[0])
        self.ends = group_by_frame(
            torch.cat((pairs.source, pairs.target)), torch.cat((pairs.start_px, pairs.end_px))
        )  # of all points, first where they start
        self.offset = self.start_offsets(model, layer)

    @torch.no_grad()
    def start_offsets(self, model: GridModel, layer: int) -> Tensor:
        """Return how far apart the model maps both ends of each point now, (P, 2, N), in pixels."""
        ends = []
        for frames, points in ((self.pairs.source, self.pairs.start_px), (self.pairs.target, self.pairs.end_px)):
            groups = zip(frames.split(PAIRS_AT_ONCE), points.split(PAIRS_AT_ONCE), strict=True)
            mapped = [
                model.at_frames(*group.tolist()).map_points(layer, torch.arange(len(group)), group_points)
                for group, group_points in groups
            ]
            ends.append(torch.cat(mapped))
        return (ends[0] - ends[1]) / self.pair_scale

    def displacements(self, nodes: list[Tensor]) -> Tensor:
        """Return the sum over the grids at the nodes of the finest one, in all frames, (T, 2, ny, nx), in texels."""
        return sum_at_nodes(self.grids, nodes, self.lattice, self.all_frames)

    def sample_ends(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return displacements at both ends of each point, (P, 2, N) each.

        total (T, 2, ny, nx): see `displacements`. To sample it is faster than to sample every grid. The result
        differs by little, as coarse grids are not linear between the nodes of the finest one.
        """
        start, end = self.ends.sample(total, self.size[1:]).chunk(2)
        return start, end

    def residuals(self, total: Tensor) -> Tensor:
        """Return how displacements (T, 2, ny, nx) of both ends of each point differ, (P, 2, N), in pixels."""
        start, end = self.sample_ends(total)
        return (start - end) / self.pair_scale

    @torch.no_grad()
    def distances_px(self, nodes: list[Tensor]) -> Tensor:
        """Return how far apart both ends of each point are with displacements, (P, N)."""
        return (self.offset + self.residuals(self.displacements(nodes))).norm(dim=1)

    def weights(self, nodes: list[Tensor], outlier_px: float) -> Tensor:
        """Return the weight (P, N) of each point: little for residuals above outlier_px."""
        return self.pairs.weight / (1 + (self.distances_px(nodes) / outlier_px).square())

    @torch.no_grad()
    def median_distances_px(self, nodes: list[Tensor]) -> tuple[float, float]:
        """Return the median distance between both ends of a point without displacements, and with these."""
        is_point = self.pairs.weight > 0
        before, after = self.offset.norm(dim=1), self.distances_px(nodes)
        return float(before[is_point].median()), float(after[is_point].median())

    def smoothness(self, total: Tensor) -> Tensor:
        """Return the energy of displacements (T, 2, ny, nx) that bend or stretch the layer, or shift it."""
        return self.smooth.energy(total / self.frame_scale)

    def inverse_curvature(self, weights: Tensor) -> list[Tensor]:
        """Return for each node about the inverse of the energy's second derivative by its value.

        The square of each point's share in a node is replaced by the share itself: an upper bound, because shares are
        at most 1. weights: (P, N).
        """
        nodes = [torch.zeros_like(grid.values, requires_grad=True) for grid in self.grids]
        start, end = self.sample_ends(self.displacements(nodes))
        total = (weights[:, None] * (start + end) / self.pair_scale.square()).sum()
        return [1 / (share + SMOOTHNESS_CURVATURE) for share in torch.autograd.grad(total, nodes)]

    def evaluate(self, nodes: list[Tensor], weights: Tensor, with_offset: bool) -> Tensor:
        """Return the energy; without the offset it is the quadratic part alone."""
        total = self.displacements(nodes)
        residuals = self.residuals(total) + (self.offset if with_offset else 0)
        return 0.5 * ((weights[:, None] * residuals.square()).sum() + self.smoothness(total))


def fit_to_flow(
    model: GridModel,
    layer: int,
    video: Video,
    is_visible: NDArray[np.bool_],
    matches: PointPairs,
) -> bool:
    """Add displacements to a layer's mapping with which it follows the flow.

    Returns whether direct matches of distant frames say that the layer is rigid, see `are_rigid`.

    model and video: on the CPU. is_visible: (T, H, W) of the layer. matches: of the layer between frames far apart,
    see `alignment.long_range`. Without flow nothing changes.
    """
    is_background = model.layers[layer].is_background
    rows = follow_lattice(video, is_visible, DISTANCES, BACKGROUND_POINTS if is_background else MOST_POINTS)
    if not rows:
        return False
    is_rigid = False
    distant = list_visible_matches(matches, is_visible, BACKGROUND_MATCH_WEIGHT if is_background else MATCH_WEIGHT)
    problem = FlowEnergy(model, layer, join_rows(rows))
    nodes = [torch.zeros_like(grid.values) for grid in problem.grids]
    for outlier_px in OUTLIERS_PX:
        if outlier_px == OUTLIERS_PX[-1] and distant:
            # Only now: of an object that turns, they match other parts, and then lie beyond the limit.
            is_rigid = are_rigid(FlowEnergy(model, layer, join_rows(distant)), nodes)
            longest = max(len(start) for _, _, start, _, _ in rows)
            problem = FlowEnergy(model, layer, join_rows(rows + split_rows(distant, longest)))
        weights = problem.weights(nodes, outlier_px)

        def energy(
            values: list[Tensor], with_offset: bool, problem: FlowEnergy = problem, weights: Tensor = weights
        ) -> Tensor:
            return problem.evaluate(values, weights, with_offset)

        nodes = conjugate_gradients(energy, nodes, problem.inverse_curvature(weights), STEPS)
    for grid, values in zip(problem.grids, nodes, strict=True):
        grid.values.data.add_(values)
    return is_rigid


def are_rigid(matches: FlowEnergy, nodes: list[Tensor]) -> bool:
    """Return whether direct matches of distant frames say that a layer is rigid.

    The mapping without displacements fits them, and displacements that follow the flow alone, which knows nothing of
    them, take them clearly farther apart. So these show errors of the flow, and not how the layer bends.
    """
    before_px, after_px = matches.median_distances_px(nodes)
    fits = before_px < MAX_RIGID_RESIDUAL * max(matches.size[1:])
    return fits and after_px > LEAST_GROWTH * before_px and len(matches.pairs.source) >= LEAST_MATCHED_PAIRS


def conjugate_gradients(
    energy: Callable[[list[Tensor], bool], Tensor], start: list[Tensor], preconditioner: list[Tensor], steps: int
) -> list[Tensor]:
    """Minimise a quadratic energy of some tensors from a start, with so many steps (Hestenes and Stiefel 1952).

    energy: of the tensors; its second argument says whether the parts that are not quadratic count. preconditioner: for
    each value about the inverse of the energy's second derivative by it; all above 0.
    """

    def gradient(tensors: list[Tensor], with_offset: bool) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return list(torch.autograd.grad(energy(leaves, with_offset), leaves))

    def precondition(tensors: list[Tensor]) -> list[Tensor]:
        return [values * factor for values, factor in zip(tensors, preconditioner, strict=True)]

    current = start
    rest = [-values for values in gradient(current, True)]
    direction = precondition(rest)
    square = dot(rest, direction)
    for _ in range(steps):
        if square == 0:
            break
        curved = gradient(direction, False)
        step = square / dot(direction, curved)
        current = [values + step * change for values, change in zip(current, direction, strict=True)]
        rest = [values - step * change for values, change in zip(rest, curved, strict=True)]
        scaled = precondition(rest)
        new_square = dot(rest, scaled)
        direction = [values + new_square / square * change for values, change in zip(scaled, direction, strict=True)]
        square = new_square
    return current


def dot(first: list[Tensor], second: list[Tensor]) -> float:
    """Return the sum of the products of all elements of two lists of tensors."""
    return float(sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(first, second, strict=True)))
