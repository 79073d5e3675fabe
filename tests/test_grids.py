"""The explicit representation: its fields, losses, optimizer, model, start and training."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import curve, draw, tiny_config, write_config

import loss_utils
from command_line import UserError
from config import load_config
from grids import losses
from grids.fields import Grid, Lattice, count_nodes, linear_weights, sample_nodes
from grids.frames import GridFrames, combine_logits
from grids.learner import GridLearner, remove_opacity_specks
from grids.loss import FLOW_STRIDE_PX, GridLoss
from grids.losses import Photometric, relative_jacobians
from grids.model import GridModel
from grids.optimizer import BETAS, EPS, PIECE, RowSparseAdam, StepRule
from grids.shape import Shape, Spacing
from grids.start import LARGEST_MASK_LOGIT, OUTLINE_LOGIT, mask_logits
from grids.unwrap import atlas_lattice, average_atlas, fill_unknown, invert_mapping
from masks.provenance import write_mask_note
from media import read_mask, write_png
from media.checkpoints import read_checkpoint
from parallel.side_by_side import Cores
from rendering.frames import render_frames
from rendering.trained_run import load_model, open_run
from training.loop import Trainer
from training.networks import fit_alignment_targets, transform_target
from training.runs import resume_run, start_run
from unwrap_utils import load_video

SIZE = (5, 40, 56)
SPACING = Spacing(mapping=((96, 8), (32, 2), (16, 1)), alpha=((8, 1), (2, 1)), light_px=24)


def grid_config(clip, results, **changes):
    return tiny_config(clip, results, **({"representation": "grid", "light": True, "iters_num": 12} | changes))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("grid_data"), width=96, height=64, frames=6)


@pytest.fixture(scope="module")
def run(clip, tmp_path_factory):
    """The trainer of a finished run."""
    config = grid_config(
        clip, tmp_path_factory.mktemp("grid_runs"), iters_num=60, evaluate_every=1000, checkpoint_every=50
    )
    trainer = start_run(replace(config, maximum_number_of_frames=6))
    trainer.run()
    return trainer


# fields


def test_the_weights_of_all_nodes_at_a_position_add_up_to_one():
    weights = linear_weights(torch.linspace(-3, 60, 50), 55.0, 7)
    torch.testing.assert_close(weights.sum(1), torch.ones(50))


def test_a_field_has_the_same_values_on_a_lattice_and_at_single_points():
    nodes = torch.randn(2, 3, 4, 6)
    lattice = Lattice.of_stride(2, SIZE[1:])
    points = lattice.points(torch.device("cpu"))[:2].expand(2, -1, -1)
    torch.testing.assert_close(lattice.interpolate(nodes).flatten(2), sample_nodes(nodes, points, SIZE[1:]))


def test_a_cropped_lattice_has_the_values_of_a_part_of_the_whole_lattice():
    nodes = torch.randn(1, 1, 5, 5)
    lattice = Lattice.of_stride(1, SIZE[1:])
    part = lattice.crop(slice(3, 9), slice(10, 20))
    torch.testing.assert_close(part.interpolate(nodes), lattice.interpolate(nodes)[:, :, 3:9, 10:20])


def test_fewer_nodes_than_frames_are_interpolated_along_time():
    grid = Grid(1, (2, 1, 1), frames=5)
    grid.values.data = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)
    assert grid.values_at(torch.arange(5)).flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("frames", [2, 3, 9, 16, 70])
def test_nodes_are_at_most_as_far_apart_as_the_spacing(frames):
    along_t, along_y, along_x = count_nodes((frames, 40, 56), 16, 8)
    for nodes, side, spacing in ((along_t, frames, 8), (along_y, 40, 16), (along_x, 56, 16)):
        assert nodes >= 2
        assert (side - 1) / (nodes - 1) <= spacing


def test_an_object_is_transparent_outside_its_box_of_each_frame():
    model = GridModel(Shape((3, 40, 56), ((20, 20), (50, 90)), replace(SPACING, light_px=0)))
    model.boxes[0] = torch.tensor([[10, 20, 5, 15], [0, 0, 0, 0], [12, 30, 20, 40]])
    alpha = model.at_frames(0, 1, 2).alpha(0, Lattice.of_stride(1, (40, 56)))[:, 0]
    assert (alpha[0] > 0).sum() == 100 and alpha[0, 10:20, 5:15].min() > 0
    assert not alpha[1].any()
    assert (alpha[2] > 0).sum() == 18 * 20


def test_light_is_divided_out_when_frames_are_averaged():
    model = GridModel(Shape((2, 32, 32), ((32, 32), (32, 32)), SPACING))
    model.light[0].values.data[1] = float(np.log(0.8))
    light = model.at_frames(1).light(Lattice.of_stride(1, (32, 32)))[0, 0, 0, 0]
    frames = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    frames[1] = (200 * light).round().byte()
    atlas = average_atlas(model, 1, frames, lambda t: torch.ones(8, 8), 1, range(2))
    assert atlas.sub(200 / 255).abs().max() < 0.005


# optimizer


def test_a_step_of_all_rows_is_a_step_of_adam():
    values = torch.randn(3, 4)
    expected = torch.nn.Parameter(values.clone())
    row_adam, torch_adam = RowSparseAdam(), torch.optim.Adam([expected], lr=0.1, betas=BETAS, eps=EPS)
    for _ in range(4):
        expected.grad = torch.randn(3, 4)
        row_adam.step("x", values, [expected.grad], StepRule(0.1), torch.arange(3))
        torch_adam.step()
    torch.testing.assert_close(values, expected.detach())


def test_a_large_atlas_is_updated_in_pieces_by_the_sum_of_its_gradients_and_stays_in_its_range():
    values = torch.randn(1, 3, 200, 300)  # more numbers than a piece has
    assert values.numel() > 2 * PIECE
    expected = torch.nn.Parameter(values.clone())
    row_adam, torch_adam = RowSparseAdam(), torch.optim.Adam([expected], lr=0.1, betas=BETAS, eps=EPS)
    for _ in range(3):
        gradients = [torch.randn(1, 3, 200, 300) for _ in range(2)]
        expected.grad = gradients[0] + gradients[1]
        row_adam.step("x", values, gradients, StepRule(0.1, (-1, 1)), run=Cores(2).map)
        torch_adam.step()
        expected.data.clamp_(-1, 1)
    torch.testing.assert_close(values, expected.detach())


def test_rows_that_a_batch_does_not_use_keep_their_values():
    values = torch.ones(4, 2)
    RowSparseAdam().step("x", values, [torch.ones(2, 2)], StepRule(0.1), torch.tensor([1, 3]))
    assert values[[0, 2]].tolist() == [[1, 1], [1, 1]]
    assert (values[[1, 3]] < 1).all()


def test_with_a_floor_what_has_hardly_a_gradient_hardly_moves():
    gradient = torch.tensor([[1.0, 1.0, 1e-3]])
    moves = []
    for floor in (0.0, 0.3):
        values = torch.zeros(1, 3)
        RowSparseAdam().step("x", values, [gradient], StepRule(0.1, floor=floor), torch.arange(1))
        moves.append(values[0].abs())
    assert moves[0].tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert moves[1][0] > 0.07 and moves[1][2] < 0.001


# losses


@pytest.mark.parametrize("height", [1, 6, 8, 21])
@pytest.mark.parametrize("has_light", [False, True])
def test_the_photometric_term_has_the_values_and_the_derivatives_of_its_parts(monkeypatch, height, has_light):
    """Rows are compared in blocks; their borders must not show."""
    monkeypatch.setattr(losses, "BLOCK_PIXELS", 2 * 7 * 4)  # four rows of two images
    torch.manual_seed(0)
    target = torch.randint(0, 256, (2, 3, height, 7), dtype=torch.uint8)
    rendered = torch.rand(2, 3, height, 7, requires_grad=True)
    light = (1 + 0.1 * torch.rand(2, 3, height, 7)).requires_grad_() if has_light else None

    def parts_of(shown):
        error = shown - target / 255
        color = error.square().sum(1).mean()
        steps = (error.diff(dim=axis).square().sum(1) for axis in (3, 2))
        return 5 * color, 2 * sum(each.mean() for each in steps if each.numel())

    expected = [*parts_of(rendered if light is None else rendered * light)]
    expected += [0.3 * each for each in parts_of(rendered)] if has_light else [torch.zeros(())] * 2
    total, parts = Photometric.apply(rendered, light, target, (5.0, 2.0), 0.3)
    torch.testing.assert_close(parts, torch.stack(expected))
    torch.testing.assert_close(total, sum(expected))
    inputs = [rendered] if light is None else [rendered, light]
    for derivative, wanted in zip(
        torch.autograd.grad(total, inputs), torch.autograd.grad(sum(expected), inputs), strict=True
    ):
        torch.testing.assert_close(derivative, wanted)


def test_a_mapping_that_kept_its_start_has_the_least_rigidity_loss_at_any_scale():
    start = torch.tensor([[[0.0, -3.0], [3.0, 0.0]]])
    y, x = torch.meshgrid(torch.arange(4.0) * 4, torch.arange(5.0) * 4, indexing="ij")
    texels = torch.einsum("kij,jyx->kiyx", start, torch.stack((x, y)))
    columns = relative_jacobians(texels, torch.linalg.inv(start)[:, None, None], (4, 4))
    rigidity = loss_utils.rigidity_of_columns(*columns, dim=1)
    torch.testing.assert_close(rigidity, torch.full((1, 3, 4), 2 * 2**0.5), atol=1e-2, rtol=0)


# model


def bent_model() -> GridModel:
    """Return a model whose layers scale, shift and bend."""
    torch.manual_seed(0)
    model = GridModel(Shape(SIZE, ((60, 80), (50, 90)), SPACING))
    model.transforms[:] = torch.tensor([[1.2, 0.1, 6.0], [-0.1, 1.2, 5.0], [0, 0, 1]])
    for group in model.mappings:
        for grid in group:
            grid.values.data.normal_(0, 0.15)
    return model


def test_the_inverse_mapping_undoes_the_mapping():
    model = bent_model()
    lattice = atlas_lattice(model, 1, 1).crop(slice(15, 40), slice(20, 60))
    points = invert_mapping(model, 1, 2, lattice)
    grid_frames = GridFrames(model, torch.tensor([2]))
    texels = grid_frames.map_points(1, torch.zeros(1, dtype=torch.long), points.flatten(1)[None])[0]
    assert (texels - lattice.points(torch.device("cpu"))[:2]).norm(dim=0).max() < 0.3


def test_the_center_of_a_layer_in_the_shared_atlas_has_the_layers_color():
    model = bent_model()
    for layer, atlas in enumerate(model.atlases):
        atlas.data.fill_(0.2 + 0.5 * layer)
    atlas_uv = model.atlas_centers[:, 0]
    assert model.atlas_color(atlas_uv)[:, 0].tolist() == pytest.approx([0.2, 0.7])


def test_unknown_texels_are_filled_from_their_neighbours():
    values, known = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    values[..., :4], known[..., :4] = 0.6, 1
    assert fill_unknown(values, known).min() == pytest.approx(0.6)


def test_a_saved_model_renders_the_same_pixels(run):
    config = load_config(run.folder / "config.json")
    loaded = load_model(run.checkpoint_path, config, run.model.transforms.device)
    for frame, expected in zip(
        render_frames(loaded, run.clip, True), render_frames(run.model, run.clip, True), strict=True
    ):
        np.testing.assert_array_equal(frame.rgb, expected.rgb)
        np.testing.assert_array_equal(frame.uv, expected.uv)


def test_a_checkpoint_of_networks_is_refused_as_grids(finished_run, tmp_path):
    config = replace(load_config(finished_run / "config.json"), representation="grid")
    with pytest.raises(UserError, match=r"holds no grids, though config\.json"):
        load_model(finished_run / "checkpoint", config, torch.device("cpu"))


def test_a_clip_of_another_length_than_the_run_was_trained_on_is_refused(run, tmp_path):
    other = draw(tmp_path / "data", width=96, height=64, frames=5)
    with pytest.raises(UserError, match="was trained on 6 frames of 96 x 64, the clip has 5 frames of 96 x 64"):
        opened = open_run(run.folder, video_name=other.name, data_folder=other.parent)
        next(render_frames(opened.model, opened.clip, True))


# start and training


def test_the_start_already_shows_the_clip(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6))
    assert (trainer.folder / "preview.png").is_file(), "the preview is written before training"
    errors = [
        np.square(frame.rgb - trainer.clip.frame(frame.t) / 255).mean()
        for frame in render_frames(trainer.model, trainer.clip, True)
    ]
    assert -10 * np.log10(np.mean(errors)) > 15


def test_sixty_steps_give_a_sharp_clip_and_a_whole_object(run):
    metrics = json.loads((run.evaluation_folder / "metrics.json").read_text())
    assert metrics["psnr"] > 22
    assert metrics["iou"] > 0.9
    assert metrics["psnr_unlit"] != metrics["psnr"], "both are reported"


@pytest.mark.slow
def test_the_same_config_gives_the_same_curve(clip, tmp_path):
    curves = []
    for number in range(2):
        trainer = start_run(grid_config(clip, tmp_path / str(number), evaluate_every=1000, maximum_number_of_frames=6))
        trainer.run(with_evaluation=False)
        curves.append(curve(trainer.folder))
    if torch.cuda.is_available():  # A GPU adds up gradients in any order.
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    else:
        assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_resumed_run_gives_the_curve_of_an_uninterrupted_one(clip, tmp_path):
    config = grid_config(clip, tmp_path / "whole", iters_num=14, checkpoint_every=5, maximum_number_of_frames=6)
    whole = start_run(config)
    whole.run(with_evaluation=False)
    interrupted = start_run(replace(config, results_folder_name=str(tmp_path / "interrupted")))
    for _ in range(5):  # into the second stage
        interrupted.log_terms(interrupted.step(), SilentOutput(), SilentOutput())
    interrupted.save()
    resumed = resume_run(interrupted.folder)
    assert resumed.iteration == 5
    resumed.run(with_evaluation=False)
    assert curve(resumed.folder) == pytest.approx(curve(whole.folder), rel=1e-6)


class SilentOutput:
    """Takes the place of TensorBoard and of the progress bar."""

    def add_scalar(self, *_):
        pass

    def set_postfix(self, **_):
        pass


def test_training_goes_through_all_resolutions(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6))
    sizes = []
    for progress in (0.0, 0.5, 0.9):
        trainer.learner.step(0, progress)
        sizes.append(trainer.model.atlases[-1].shape[-1])
    assert sizes[0] < sizes[1] < sizes[2]
    assert abs(sizes[2] - trainer.model.shape.atlas_sizes[-1][1]) <= 1


@pytest.mark.parametrize("progress", [0.0, 0.9], ids=["many pairs", "one pair"])
def test_a_step_is_the_same_however_many_cores_share_it(clip, tmp_path, progress):
    results = []
    for cores in (1, 2, 3, 16):
        trainer = start_run(grid_config(clip, tmp_path / str(cores), maximum_number_of_frames=6))
        trainer.learner.cores = Cores(cores)
        terms = trainer.learner.step(0, progress)
        results.append((terms, trainer.model.state_dict()))
    for terms, state in results[1:]:
        for name, value in results[0][0].items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
        for name, value in results[0][1].items():
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-3)


def test_each_core_works_on_its_part_with_one_thread_and_waits_only_at_the_end_of_a_step(clip, tmp_path, monkeypatch):
    """So a core that another process takes delays a step once, and not at every operator."""
    trainer = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6))
    learner = trainer.learner
    learner.cores = Cores(2)
    meeting, seen = threading.Barrier(2), []
    compute = GridLoss.part_gradients

    def record(self, batch, flow_weights, positions):
        meeting.wait(30)  # Both parts are worked on at the same time.
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return compute(self, batch, flow_weights, positions)

    monkeypatch.setattr(GridLoss, "part_gradients", record)
    learner.step(0, 0.9)
    assert len({thread for thread, _ in seen}) == 2
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert [threads for _, threads in seen] == [1, 1]


def test_the_frames_of_a_batch_are_divided_evenly_among_the_cores(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6))
    trainer.learner.cores = Cores(2)
    assert trainer.learner.divide(trainer.learner.draw_batch(0.9)) == [range(1), range(1, 2)]
    trainer.learner.cores = Cores(4)
    sizes = [len(part) for part in trainer.learner.divide(trainer.learner.draw_batch(0.0))]
    assert sum(sizes) % 2 == 0
    assert max(sizes) - min(sizes) <= 1


def test_the_lattice_of_rigidity_and_flow_has_every_offset_that_fits_and_always_as_many_rows(clip, tmp_path):
    learner = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6)).learner
    for side in (8, 54, 55):
        drawn = [learner.draw_lattice_axis(side) for _ in range(200)]
        assert {len(rows) for rows in drawn} == {side // FLOW_STRIDE_PX}
        assert set(torch.cat(drawn).tolist()) == set(range(side))


def test_inner_frames_are_drawn_equally_often_and_the_ends_half_as_often(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, maximum_number_of_frames=6))
    drawn_frames = torch.cat([trainer.learner.next_pairs(1) for _ in range(120)])
    counts = torch.bincount(drawn_frames, minlength=6)
    assert counts.tolist() == [24, 48, 48, 48, 48, 24]


@pytest.mark.slow
def test_a_budget_too_short_for_a_step_saves_the_start_with_a_warning(clip, tmp_path, capsys):
    trainer = start_run(grid_config(clip, tmp_path, time_budget_s=0.01, maximum_number_of_frames=6))
    trainer.run()
    assert trainer.iteration == 0
    model = load_model(trainer.checkpoint_path, trainer.config, torch.device("cpu"))
    assert model.atlases[-1].shape[2:] == model.shape.atlas_sizes[-1], "at full resolution, in the checkpoint too"
    assert "less than one pass over the clip" in capsys.readouterr().err
    assert (trainer.evaluation_folder / "index.html").is_file()
    assert not (trainer.folder / "curve.png").exists(), "there is nothing to plot"


@pytest.mark.parametrize(
    ("width", "height", "frames"),
    [(64, 48, 2), (48, 80, 4), (19, 23, 3)],
    ids=["two frames", "portrait", "odd and tiny"],
)
def test_clips_of_unusual_sizes_train(tmp_path, width, height, frames):
    clip = draw(tmp_path / "data", width=width, height=height, frames=frames)
    trainer = start_run(grid_config(clip, tmp_path, iters_num=4, evaluate_every=1000))
    trainer.train_without_evaluating()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_clip_without_a_foreground_is_all_background(clip_folder, tmp_path):
    for path in clip_folder.with_name(clip_folder.name + "_maskrcnn").iterdir():
        write_png(path, np.zeros_like(read_mask(path)))
    trainer = start_run(grid_config(clip_folder, tmp_path, iters_num=4, evaluate_every=1000))
    trainer.train_without_evaluating()
    frame = next(render_frames(trainer.model, trainer.clip, True))
    assert not frame.coverage.any()


def test_light_can_be_switched_off(clip, tmp_path):
    trainer = start_run(grid_config(clip, tmp_path, light=False, maximum_number_of_frames=6))
    trainer.learner.step(0, 0.0)
    assert next(render_frames(trainer.model, trainer.clip, True)).light is None


@pytest.mark.slow
def test_published_networks_can_start_from_the_alignment(clip, tmp_path):
    config = tiny_config(
        clip, tmp_path, initialisation="alignment", pretrain_iter_number=150, maximum_number_of_frames=6
    )
    trainer = start_run(config)
    scale = read_checkpoint(trainer.checkpoint_path)["uv_mapping_scale"]
    matrices, expected = fit_alignment_targets(trainer.learner.video, 0.8)
    assert scale == expected < 0.8, "the camera's pan must fit the atlas"
    frames = list(render_frames(trainer.model, trainer.clip, True))
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    for t in (0, 5):
        pixels = torch.tensor(np.stack((x, y, np.full_like(x, t)), axis=-1).reshape(-1, 3)).float()
        target = transform_target(matrices[-1].cpu(), pixels).view(64, 96, 2).numpy()
        error, error_of_other_frame = (np.abs(frames[frame].uv[-1] - target).mean() for frame in (t, 5 - t))
        assert error < 0.6 * error_of_other_frame


def test_a_checkpoint_without_the_state_of_the_training_can_still_be_rendered_but_not_resumed(run, tmp_path):
    checkpoint = read_checkpoint(run.checkpoint_path)
    del checkpoint["grid_optimizer"]
    path = tmp_path / "checkpoint"
    torch.save(checkpoint, path)
    load_model(path, load_config(run.folder / "config.json"), torch.device("cpu"))
    with pytest.raises(UserError, match="no usable state of the training"):
        Trainer(load_config(run.folder / "config.json"), tmp_path).restore(path)


def test_specks_of_opacity_are_removed_and_the_object_stays(run):
    model = GridModel.from_checkpoint(run.model.checkpoint(), run.checkpoint_path)
    opacity = torch.zeros(1, 6, *model.last_alpha_grid(0).values.shape[2:])
    opacity[:, :, 5:25, 5:30] = 0.9
    opacity[:, 2, 2:4, 40:42] = 0.9  # separate and tiny, in one frame
    before = model.last_alpha_grid(0).values.detach().clone()
    probability = torch.zeros_like(opacity)
    opacity[:, 4, 2:4, 40:42] = probability[:, 4, 2:4, 40:42] = 0.9  # so is this one, but the masks hold it
    remove_opacity_specks(model, opacity, probability)
    decrease = before - model.last_alpha_grid(0).values.detach()
    assert (decrease[2, 0, 2:4, 40:42] > 5).all()
    decrease[2, 0, 2:4, 40:42] = 0
    assert (decrease == 0).all()


def test_the_last_level_of_opacity_stays_the_last_where_levels_repeat():
    spacing = replace(SPACING, alpha=((2, 1), (8, 8), (2, 1)))
    model = GridModel(Shape((4, 32, 64), ((32, 32), (32, 64)), spacing))
    assert [grid.values.shape[0] for grid in model.alphas[0]] == [2, 4]


def test_a_resumed_run_warns_that_its_levels_are_not_the_configs(clip, tmp_path, capsys):
    trainer = start_run(grid_config(clip, tmp_path, grid_light_px=8))
    resume_run(trainer.folder)
    assert "begun with other" not in capsys.readouterr().err
    write_config(trainer.folder / "config.json", replace(trainer.config, grid_light_px=32))
    assert resume_run(trainer.folder).model.shape.spacing.light_px == 8
    assert "begun with other grid_levels_*, grid_light_px" in capsys.readouterr().err


def test_the_schedule_follows_the_config(run):
    config = replace(
        run.config,
        grid_quarter_until=0.1,
        grid_half_until=0.2,
        grid_quarter_pairs=3,
        grid_half_pairs=2,
        grid_full_pairs=1,
        grid_decay_from=0.5,
        grid_rate_end=0.01,
        alpha_bootstrapping_factor=2000.0,
        prior_coeff=300.0,
    )
    learner = GridLearner(config, load_video(run.clip, torch.device("cpu"), ()), torch.Generator())
    assert [learner.pairs_at(learner.stride_at(progress)) for progress in (0.0, 0.1, 0.2)] == [3, 2, 1]
    assert [learner.rate_factor(progress) for progress in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [learner.prior_weight(progress) for progress in (0.0, 0.05, 1.0)] == pytest.approx(
        [2000, 632, 300], rel=0.01
    )


def test_spacings_come_from_the_config_and_are_stored_in_the_checkpoint(clip, tmp_path):
    levels = {"grid_levels_mapping": ((40, 2), (20, 1)), "grid_levels_alpha": ((4, 1),), "grid_light_px": 32}
    trainer = start_run(grid_config(clip, tmp_path, **levels))
    assert [grid.values.shape for grid in trainer.model.mappings[0]] == [(3, 2, 3, 4), (4, 2, 5, 6)]
    assert [grid.values.shape for grid in trainer.model.alphas[0]] == [(4, 1, 17, 25)]
    loaded = load_model(trainer.checkpoint_path, grid_config(clip, tmp_path), torch.device("cpu"))
    assert loaded.shape.spacing == Spacing.from_config(trainer.config)


def test_a_kept_mask_is_never_contradicted_whatever_is_learned():
    mask = torch.linspace(-7, 7, 201)[:, None]
    learned = torch.linspace(-50, 50, 101)[None]
    combined = combine_logits(learned, mask, torch.tensor(True))
    assert ((combined > 0) == (mask > 0)).all()


def test_in_other_frames_only_strokes_are_kept():
    learned = torch.linspace(-50, 50, 101)[None]
    stroke, none = torch.tensor([[LARGEST_MASK_LOGIT], [-LARGEST_MASK_LOGIT]]), torch.zeros(1, 1)
    assert torch.equal(combine_logits(learned, none, torch.tensor(False)), learned)
    assert ((combine_logits(learned, stroke, torch.tensor(False)) > 0) == (stroke > 0)).all()


def test_the_logits_of_a_mask_are_soft_at_its_outline_only_or_where_the_mask_is_soft():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:22] = 255
    logits = mask_logits(mask)
    assert ((logits > 0) == (mask > 127)).all()
    assert logits[5, 15] == OUTLINE_LOGIT == -logits[4, 15]
    assert logits[10, 15] == LARGEST_MASK_LOGIT == -logits[0, 0]
    mask[5:15, 8:22] = 64
    assert 1 / (1 + np.exp(-mask_logits(mask)[10, 15])) == pytest.approx(0.25, abs=0.01)


def test_thin_parts_of_masks_that_were_brought_are_kept_through_training(clip_folder, tmp_path):
    from media import read_mask, write_png
    from preprocessing.mask_files import list_frames

    folder, masks = clip_folder.with_name(f"{clip_folder.name}_maskrcnn"), {}
    for path in list_frames(clip_folder):
        mask = np.where(read_mask(folder / f"{path.stem}.png") > 127, 255, 0).astype(np.uint8)
        mask[::7, 3:40] = 255  # lines of one pixel
        masks[path.stem] = mask
        write_png(folder / f"{path.stem}.png", mask)
    write_mask_note(folder, {"method": "import"}, [], {})
    trainer = start_run(grid_config(clip_folder, tmp_path, iters_num=40, evaluate_every=1000, sparsity_coeff=1e5))
    trainer.train_without_evaluating()
    trainer.save()
    loaded = load_model(trainer.checkpoint_path, trainer.config, torch.device("cpu"))
    for frame, path in zip(render_frames(loaded, trainer.clip, True), trainer.clip.frame_paths, strict=True):
        assert ((frame.coverage > 0.5) == (masks[path.stem] > 127)).all()
    resumed = resume_run(trainer.folder)
    assert torch.equal(resumed.model.mask_logits, trainer.model.mask_logits)
