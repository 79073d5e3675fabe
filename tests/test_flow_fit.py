"""A start that bends: displacements by least squares over the flow of all frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignment.camera import Surface
from alignment.layers import align_layers
from alignment.tracks import pad_pairs
from config import Config
from grids.atlas_size import enlarge_atlas, texel_extent
from grids.fields import Lattice, count_nodes, sample_nodes
from grids.flow_fit import (
    DISTANCES,
    FlowEnergy,
    conjugate_gradients,
    fit_to_flow,
    follow_lattice,
    group_by_frame,
    join_rows,
    list_visible_matches,
)
from grids.frames import GridFrames
from grids.learner import GridLearner
from grids.long_flow import follow_layers
from grids.loss import PartFrames
from grids.model import GridModel
from grids.shape import Spacing
from grids.smoothness import Smoothness
from grids.start import bend_layers, build_model
from media.flows import FORWARD
from scenes.catalogue import SCENES
from unwrap_utils import empty_video, store_flow

WIDTH, HEIGHT, FRAMES = 192, 108, 12
NO_MATCHES = pad_pairs([])  # The clip is too short for matches of distant frames.
SPACING = Spacing(((64, 4), (24, 2), (12, 1)), ((8, 1),), 0)


@pytest.fixture(scope="module")
def bending():
    """A drawn clip whose object bends: video with exact flow, scene, pixels of the object (T, H, W)."""
    scene = SCENES["bend"](WIDTH, HEIGHT, FRAMES)
    video = empty_video((FRAMES, HEIGHT, WIDTH))
    for t in range(FRAMES):
        drawn = scene.frame(t)
        video.frames[t] = torch.from_numpy(drawn.rgb)
        video.masks[0, t] = torch.from_numpy((drawn.alpha[0] * 255).astype(np.uint8))
        for direction, other in ((0, t + 1), (1, t - 1)):
            if 0 <= other < FRAMES:
                store_flow(video, direction, t, *scene.flow(t, other))
    return video, scene, video.masks[0].numpy() > 127


def make_model(video, spacing=SPACING) -> GridModel:
    motions = [Surface(transforms) for transforms in align_layers(video)]
    model, _ = build_model(video, motions, video.masks.numpy(), spacing, video.frames.permute(0, 3, 1, 2), 1)
    return model


def placement_px(model, scene, inside):
    """How far apart the object's atlas places of the same points are, in frames far apart, in pixels."""
    errors = []
    for t, other in ((0, 6), (2, 9), (5, 11)):
        y, x = np.nonzero(inside[t][6:-6, 6:-6])
        points = np.stack((x + 6, y + 6), axis=1)[::17].astype(float)
        moved = scene.move_points(points, np.zeros(len(points), np.uint8), t, other)
        seen = scene.is_visible(moved[None], np.zeros((1, len(moved)), np.uint8), other)[0]
        first, second = (
            model.at_frames(at).map_points(0, torch.zeros(1, dtype=torch.long), torch.from_numpy(p.T)[None].float())[0]
            for at, p in ((t, points[seen]), (other, moved[seen]))
        )
        errors.append((first - second).norm(dim=0) / model.texels_per_pixel(0)[t])
    return float(torch.cat(errors).mean().detach())


@torch.no_grad()
def test_an_object_that_bends_has_its_points_in_one_place_before_any_training(bending):
    video, scene, inside = bending
    model = make_model(video)
    before = placement_px(model, scene, inside)
    with torch.enable_grad():
        fit_to_flow(model, 0, video, inside, NO_MATCHES)
    assert before > 0.4
    assert placement_px(model, scene, inside) < 0.4 * before


@torch.no_grad()
def test_flow_that_is_wrong_in_places_pulls_little(bending):
    video, scene, inside = bending
    wrong = empty_video(video.size)
    for name in ("frames", "masks", "flow_steps", "flow_valid", "flow_unit_px"):
        getattr(wrong, name).copy_(getattr(video, name))
    wrong.flow_steps[FORWARD, 4, 40:60, 80:100] = 100  # a block of one frame flies away
    model = make_model(video)
    with torch.enable_grad():
        fit_to_flow(model, 0, wrong, inside, NO_MATCHES)
    assert placement_px(model, scene, inside) < 0.7


def true_match(scene, inside, t, other):
    """Points of the object in frame t that frame other shows, too, as a row of `pad_pairs`."""
    y, x = np.nonzero(inside[t])
    points = np.stack((x, y), axis=1)[::7].astype(float)
    moved = scene.move_points(points, np.zeros(len(points), np.uint8), t, other)
    seen = scene.is_visible(moved[None], np.zeros((1, len(moved)), np.uint8), other)[0]
    return t, other, points[seen], moved[seen]


@torch.no_grad()
def test_direct_matches_join_two_parts_of_a_clip_between_which_no_flow_leads(bending):
    video, scene, inside = bending
    torn = replace(video, flow_valid=video.flow_valid.clone())
    torn.flow_valid[FORWARD, 5] = False
    errors = {}
    for name, rows in (("flow", []), ("flow and matches", [true_match(scene, inside, t, t + 6) for t in (0, 2, 4)])):
        model = make_model(video)
        with torch.enable_grad():
            fit_to_flow(model, 0, torn, inside, pad_pairs(rows, most_points=1000))
        errors[name] = placement_px(model, scene, inside)
    assert errors["flow and matches"] < 0.5 * errors["flow"]


@torch.no_grad()
@pytest.mark.parametrize("mapping", [SPACING.mapping, ((12, 1),), ((12, 1), (64, 4))])
def test_the_fit_adds_up_all_grids_at_the_nodes_of_the_finest_one(bending, mapping):
    video, _, inside = bending
    model = make_model(video, replace(SPACING, mapping=mapping))
    problem = FlowEnergy(model, 0, join_rows(follow_lattice(video, inside)))
    for grid in problem.grids:
        grid.values.normal_(generator=torch.Generator().manual_seed(0))
    finest = count_nodes(video.size, 12, 1)
    lattice = Lattice.of_nodes(finest[1:], video.size[1:])
    expected = model.at_frames(*range(FRAMES)).evaluate_field("mappings.0", lattice)
    total = problem.displacements([grid.values for grid in problem.grids])
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=0)


def test_rows_of_points_that_share_a_frame_are_sampled_as_each_row_alone():
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([3] * 11 + [0] * 8 + [5] + [3] * 7)  # more rows of frame 3 than fit into two groups
    points = torch.rand(len(frames), 2, 5, generator=generator) * torch.tensor([[WIDTH - 1], [HEIGHT - 1]])
    values = torch.rand(7, 2, 10, 17, generator=generator)
    sampled = group_by_frame(frames, points).sample(values, (HEIGHT, WIDTH))
    torch.testing.assert_close(sampled, sample_nodes(values[frames], points, (HEIGHT, WIDTH)))


@pytest.mark.parametrize("nodes", [(2, 3), (9, 14)])
def test_smoothness_is_the_sum_of_squared_differences_of_neighbouring_nodes(nodes):
    field = torch.rand(4, 2, *nodes, generator=torch.Generator().manual_seed(0), requires_grad=True)
    down, across = field.diff(dim=2), field.diff(dim=3)
    bending = sum(each.square().sum() for each in (down.diff(dim=2), across.diff(dim=3), down.diff(dim=3)))
    expected = 0.5 * bending + 0.3 * (down.square().sum() + across.square().sum()) + 0.1 * field.square().sum()
    energy = Smoothness(nodes, bending=0.5, stretch=0.3, anchor=0.1).energy(field)
    torch.testing.assert_close(energy, expected)
    gradients = [torch.autograd.grad(3 * each, field)[0] for each in (energy, expected)]
    torch.testing.assert_close(*gradients)


def test_points_are_connected_over_several_distances_and_only_where_the_layer_is_visible(bending):
    video, _, inside = bending
    pairs = join_rows(follow_lattice(video, inside))
    assert set((pairs.target - pairs.source).tolist()) == {each for each in DISTANCES if each < FRAMES} == {1, 2, 4, 8}
    for index in range(len(pairs.source)):
        chosen = pairs.weight[index] > 0
        for frames, points in ((pairs.source, pairs.start_px), (pairs.target, pairs.end_px)):
            x, y = points[index][:, chosen].round().long().numpy()
            assert inside[frames[index], y, x].all()


def test_direct_matches_count_only_where_both_of_their_ends_show_the_layer():
    is_visible = np.zeros((3, HEIGHT, WIDTH), bool)  # Frame 1 does not show the layer.
    is_visible[0, :, :50] = is_visible[2, :, 100:] = True
    start = np.stack((np.arange(2, 92, 6), np.full(15, 20)), axis=1).astype(float)  # eight of them in columns 0 to 49
    end = start + (100.0, 5.0)
    end[3, 0], end[5, 0] = 60.0, WIDTH + 5.0  # One ends where the layer is hidden, and one outside of the frame.
    matches = pad_pairs([(0, 2, start, end), (0, 1, start, end)])
    ((source, target, starts, ends, weight),) = list_visible_matches(matches, is_visible, 0.5)
    assert (source, target, weight) == (0, 2, 0.5)
    np.testing.assert_array_equal(starts, start[[0, 1, 2, 4, 6, 7]])
    np.testing.assert_array_equal(ends, end[[0, 1, 2, 4, 6, 7]])


def test_few_direct_matches_do_not_count():
    is_visible = np.ones((2, HEIGHT, WIDTH), bool)
    points = np.full((5, 2), 20.0)
    assert list_visible_matches(pad_pairs([(0, 1, points, points)]), is_visible, 1.0) == []


def test_without_flow_nothing_changes(bending):
    video, _, inside = bending
    still = empty_video(video.size)
    model = make_model(video)
    fit_to_flow(model, 0, still, inside, NO_MATCHES)
    assert all(not grid.values.any() for grid in model.fields_by_name()["mappings.0"])
    fit_to_flow(model, 0, video, np.zeros_like(inside), NO_MATCHES)
    assert all(not grid.values.any() for grid in model.fields_by_name()["mappings.0"])


def test_conjugate_gradients_solve_a_quadratic_problem():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator).double()
    matrix, right = root @ root.T + torch.eye(6), torch.randn(6, generator=generator).double()

    def energy(tensors, with_offset):
        values = torch.cat(tensors)
        return 0.5 * values @ matrix @ values - (right @ values if with_offset else 0)

    start = [torch.ones(2).double(), torch.zeros(4).double()]
    first, second = conjugate_gradients(energy, start, [torch.ones(2), torch.ones(4)], 12)
    torch.testing.assert_close(torch.cat((first, second)), torch.linalg.solve(matrix, right))


def test_a_preconditioner_saves_steps_where_nodes_count_very_differently():
    curvature = torch.logspace(0, 4, 30).double()

    def energy(tensors, with_offset):
        return 0.5 * (curvature * tensors[0].square()).sum() - (tensors[0].sum() if with_offset else 0)

    def distance_after(steps, preconditioner):
        found = conjugate_gradients(energy, [torch.zeros(30).double()], [preconditioner], steps)[0]
        return float((found - 1 / curvature).abs().max())

    assert distance_after(2, 1 / curvature) < 1e-9
    assert distance_after(2, torch.ones(30)) > 0.1


def bend(model, video):
    """Bend the object of a model, with its masks for opacity."""
    masks = video.masks.numpy()
    opacity = torch.from_numpy(masks[:, :, ::8, ::8].astype(np.float32) / 255)
    bend_layers(model, video, [NO_MATCHES] * 2, masks, video.frames.permute(0, 3, 1, 2), opacity, 1)


def test_the_atlas_holds_everything_that_the_bent_object_shows(bending):
    video, _, inside = bending
    model = make_model(video)
    model.fields_by_name()["mappings.0"][-1].values.data[5, 0] += 60  # one frame is moved out of the atlas
    before = model.shape.atlas_sizes[0]
    still = empty_video(video.size)  # without flow, by which the frame would be moved back
    still.frames.copy_(video.frames)
    still.masks.copy_(video.masks)
    bend(model, still)
    low, high = texel_extent(model, 0, inside)
    height, width = model.shape.atlas_sizes[0]
    assert (width, height) > before[::-1]
    assert (low >= 0).all()
    assert (high <= [width - 1, height - 1]).all()
    assert model.atlases[0].shape[2:] == (height, width)
    enlarge_atlas(model, 0, np.array([[0.0, 0], [5, 5]]))  # holds it already
    assert model.shape.atlas_sizes[0] == (height, width)


def test_an_object_bends_if_its_atlas_then_shows_the_frames_better(bending):
    video, scene, inside = bending
    model = make_model(video)
    before = placement_px(model, scene, inside)
    bend(model, video)
    assert placement_px(model, scene, inside) < 0.6 * before


def test_a_layer_keeps_its_mapping_if_bending_makes_its_atlas_worse(bending, monkeypatch):
    video, _, _ = bending
    model = make_model(video)

    def spoil(model, layer, video, is_visible, matches):
        model.fields_by_name()[f"mappings.{layer}"][-1].values.data.normal_(0, 20)

    monkeypatch.setattr("grids.start.fit_to_flow", spoil)
    bend(model, video)
    assert all(not grid.values.any() for layer in (0, 1) for grid in model.fields_by_name()[f"mappings.{layer}"])


def test_the_background_follows_flow_that_no_transform_fits(bending):
    video, _, inside = bending
    moved = empty_video(video.size)
    moved.frames.copy_(video.frames)
    moved.masks.copy_(video.masks)
    # The middle third is nearer to the camera and moves half a pixel per frame; the rest stands still.
    near = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    near[:, WIDTH // 3 : 2 * WIDTH // 3, 0] = 0.5
    for t in range(FRAMES - 1):
        store_flow(moved, FORWARD, t, near, np.ones((HEIGHT, WIDTH), bool))
    model = make_model(moved)
    points = torch.tensor([[[20.0, 96.0, 170.0], [10.0, 10.0, 10.0]]])
    later = points + torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])  # four frames later

    def largest_distance():
        frames = model.at_frames(3, 7)
        start, end = (frames.map_points(1, torch.tensor([k]), each)[0] for k, each in enumerate((points, later)))
        return float((start - end).detach().norm(dim=0).max())

    assert largest_distance() > 1
    fit_to_flow(model, 1, moved, ~inside, NO_MATCHES)
    assert largest_distance() < 0.25


# flow over several frames, in training


def probability_of(video, nodes=(28, 49)):
    """The object's probability at nodes that are evenly spread over the frames, (1, T, ny, nx)."""
    return torch.nn.functional.interpolate(video.masks.float() / 255, nodes, mode="bilinear", align_corners=True)


def test_points_are_drawn_where_the_flow_leads_over_several_frames(bending):
    video, scene, inside = bending
    followed, background = follow_layers(video, probability_of(video))
    drawn = followed.draw(torch.arange(FRAMES), torch.Generator().manual_seed(0))
    assert (drawn.weight == 1).all()
    first_frames = torch.arange(FRAMES).repeat_interleave(followed.pair_ranges[1])
    assert set((followed.target - first_frames).tolist()) == {-8, -4, -2, 2, 4, 8}
    behind = background.draw(torch.arange(FRAMES), torch.Generator().manual_seed(0))
    for t, points in zip(behind.source.tolist(), behind.start_px, strict=True):
        x, y = np.rint(points.numpy()).astype(int)
        assert inside[t][y, x].mean() < 0.05
    for source, target, start_px, end_px in zip(
        drawn.source.tolist(), drawn.target.tolist(), drawn.start_px, drawn.end_px, strict=True
    ):
        start = start_px.T.double().numpy()
        x, y = np.rint(start).astype(int).T
        assert inside[source][y, x].mean() > 0.95  # Nodes do not lie on pixels, so the outline is blurred.
        true = scene.move_points(start, np.zeros(len(start), np.uint8), source, target)
        assert np.abs(true - end_px.T.numpy()).mean() < 0.5


def test_without_flow_no_points_are_drawn():
    video = empty_video((3, 24, 32))
    video.masks[0, :, 8:16, 8:16] = 255
    for followed in follow_layers(video, probability_of(video, (7, 9))):
        drawn = followed.draw(torch.arange(3), torch.Generator())
        assert not drawn.weight.any()
        assert drawn.target.tolist() == [0, 1, 2]


def long_flow_term(learner, t, shift_px):
    """The object's term of flow over several frames of one frame t, with its mapping shifted there, and its derivative
    by the shift."""
    grid = learner.model.fields_by_name()["mappings.0"][-1]
    grid.values.data[t, 0] += shift_px * learner.model.texels_per_pixel(0)[t]
    learner.rng.manual_seed(0)
    batch = learner.draw_batch(0.99)
    batch.t[:] = t
    batch.long_flow = [each.draw(batch.t, learner.rng) for each in learner.long_flow]
    own = GridFrames(learner.model, batch.t, training=True)
    everything, weights = range(len(batch.t)), learner.loss.flow_weights(batch)
    frames = PartFrames(own, everything, own, torch.arange(len(batch.t)), batch.make_lattice(), weights)
    term = learner.loss.long_flow_terms(frames, batch)["long_flow_foreground"]
    (derivative,) = torch.autograd.grad(term, own.leaves["mappings.0.2"])
    grid.values.data[t, 0] -= shift_px * learner.model.texels_per_pixel(0)[t]
    return float(term.detach()), float(derivative[:, 0].sum())


def test_flow_over_several_frames_pulls_a_mapping_back_that_drifts_and_ignores_small_differences(bending):
    video, _, inside = bending
    config = Config(data_folder="unused", representation="grid", light=False, grid_levels_mapping=SPACING.mapping)
    learner = GridLearner(config, video, torch.Generator().manual_seed(0))
    model = make_model(video)
    fit_to_flow(model, 0, video, inside, NO_MATCHES)
    learner.set_model(model, probability_of(video, model.last_alpha_grid(0).values.shape[2:]), 1)
    fitted, _ = long_flow_term(learner, 5, 0.0)
    near, _ = long_flow_term(learner, 5, 0.2)
    right, pull_left = long_flow_term(learner, 5, 3.0)
    left, pull_right = long_flow_term(learner, 5, -3.0)
    assert fitted == near == 0
    assert min(left, right) > config.long_flow_coeff  # 2.5 px too much, of which about half is trusted
    assert pull_left > 0 > pull_right


def test_with_weight_0_no_points_are_followed(bending):
    video, _, _ = bending
    config = Config(data_folder="unused", representation="grid", light=False, long_flow_coeff=0.0)
    learner = GridLearner(config, video, torch.Generator().manual_seed(0))
    model = make_model(video)
    learner.set_model(model, probability_of(video, model.last_alpha_grid(0).values.shape[2:]), 1)
    assert learner.draw_batch(0.99).long_flow == []
    assert not any(name.startswith("long_flow") for name in learner.step(0, 0.99))


def test_training_does_not_bend_a_rigid_layer_unless_the_user_makes_it_softer(bending, tmp_path):
    video, _, inside = bending
    config = Config(data_folder="unused", representation="grid", light=False, grid_levels_mapping=SPACING.mapping)
    learner = GridLearner(config, video, torch.Generator().manual_seed(0))
    model = make_model(video)
    fit_to_flow(model, 0, video, inside, NO_MATCHES)
    model.rigid_layers = frozenset({0})
    learner.set_model(model, probability_of(video, model.last_alpha_grid(0).values.shape[2:]), 1)
    learner.restore(learner.checkpoint(), tmp_path / "checkpoint")  # as a resumed run does it
    grids = learner.model.fields_by_name()
    before = {name: [grid.values.detach().clone() for grid in grids[name]] for name in ("mappings.0", "mappings.1")}

    def has_changed(layer: int) -> bool:
        pairs = zip(before[f"mappings.{layer}"], grids[f"mappings.{layer}"], strict=True)
        return any(not torch.equal(values, grid.values) for values, grid in pairs)

    learner.step(0, 0.99)
    assert not has_changed(0)
    assert has_changed(1)
    saved = learner.checkpoint()
    for factor, expected in ((2.0, {0}), (0.5, set())):
        softer = GridLearner(replace(config, layer_rigidity=(factor, 1.0)), video, torch.Generator())
        softer.restore(saved, tmp_path / "checkpoint")
        assert softer.model.rigid_layers == expected
    del saved["grid_shape"]["rigid_layers"]  # as in checkpoints of before
    learner.restore(saved, tmp_path / "checkpoint")
    assert learner.model.rigid_layers == set()
