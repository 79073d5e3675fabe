"""The known defects of the published code. Each has a test, whose name begins with the place of the defect."""

import ast
import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, curve, draw, tiny_config, video_metadata, write_config
from PIL import Image

import export_layers
import loss_utils
import media
import only_edit
import training.loop
from command_line import UserError
from config import load_config
from evaluate import evaluate
from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from media.flows import resize_flow
from preprocessing.flow_raft import RaftFlow
from rendering.atlas_view import AtlasView
from rendering.blending import apply_edits
from rendering.frames import Frame, render_frames
from rendering.resampling import sample_image
from rendering.trained_run import open_run
from training.loop import Trainer
from training.networks import loss_terms
from training.runs import resume_run, start_run
from training.sampling import make_published_batch
from unwrap_utils import consistent_pixels, load_video

CPU = torch.device("cpu")
LARGE = (96, 64)  # frame size, pixels, at which arrays of a whole clip stand out in the memory used
FEW_FRAMES, MANY_FRAMES = 4, 32


def project_sources() -> dict[str, ast.Module]:
    """Return the syntax tree of every Python file of the project except tests: path relative to the root -> tree."""
    paths = {path.relative_to(ROOT): path for path in ROOT.rglob("*.py")}
    own = {name: path for name, path in paths.items() if not is_foreign(name)}
    return {str(name): ast.parse(path.read_text(encoding="utf-8")) for name, path in own.items()}


def is_foreign(name: Path) -> bool:
    """Return whether a path belongs to the tests, the environment or code of others."""
    return name.parts[0] in ("tests", "thirdparty") or any(part.startswith(".") for part in name.parts)


def find_calls(name: str) -> list[str]:
    """Return the files with calls of a function or class, one entry per call."""
    return [
        path
        for path, tree in project_sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
    ]


def test_flow_resize__resized_flow_scales_x_by_width_and_y_by_height():
    flow = np.ones((10, 20, 2), np.float32)
    resized = resize_flow(flow, width=60, height=20)
    assert resized.shape == (20, 60, 2)
    np.testing.assert_allclose(resized[..., 0], 3)
    np.testing.assert_allclose(resized[..., 1], 2)


def test_flow_padding__padding_is_cropped_off_the_flow():
    def position_as_flow(first, second):
        height, width = first.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        assert height % 8 == 0
        assert width % 8 == 0
        return torch.stack((x, y))[None].repeat(2, 1, 1, 1).float()

    flow, _ = RaftFlow(position_as_flow, CPU)(*np.zeros((2, 45, 77, 3), np.uint8))
    assert flow.shape == (45, 77, 2)
    assert flow[44, 76].tolist() == [76, 44]


def test_mask_resize__a_resized_mask_stays_black_and_white():
    mask = np.zeros((48, 64), np.uint8)
    mask[10:31, 7:22] = 255
    for size in ((37, 25), (150, 101)):
        assert set(np.unique(media.resize_labels(mask, *size))) == {0, 255}


def test_masks__palette_label_rgb_rgba_and_deep_masks_are_read_alike(tmp_path):
    is_object = np.zeros((8, 10), bool)
    is_object[2:5, 3:7] = True
    palette = Image.fromarray(is_object.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # a DAVIS annotation
    grey = (is_object * 255).astype(np.uint8)
    pictures = {
        "palette": palette,
        "labels": Image.fromarray(is_object.astype(np.uint8)),
        "grey": Image.fromarray(grey),
        "bits": Image.fromarray(grey).convert("1"),
        "rgb": Image.fromarray(np.dstack([grey] * 3)),
        "red": Image.fromarray(np.dstack([grey, 0 * grey, 0 * grey])),
        "opaque rgba": Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])),
        "cut-out rgba": Image.fromarray(np.dstack([np.full_like(grey, 90)] * 3 + [grey])),
        "grey palette": Image.fromarray(grey).quantize(2),
        "several labels": Image.fromarray(is_object.astype(np.uint8) * 2),
        "16-bit labels": Image.fromarray(is_object.astype(np.uint16)),
        "16 bits": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.png"
        picture.save(path)
        np.testing.assert_array_equal(media.read_mask(path), grey, err_msg=name)


def test_masks__are_paired_by_name_not_by_order(clip_folder):
    clip = open_clip(clip_folder, tiny_config(clip_folder, clip_folder))
    assert [path.stem for path in clip.masks] == [path.stem for path in clip.frame_paths]
    (clip_folder.with_name("demo_maskrcnn") / "00000.png").rename(clip_folder.with_name("demo_maskrcnn") / "zz.png")
    with pytest.raises(UserError, match=r"has no mask for 1 of 4 frames, the first is 00000\.png"):
        _ = replace(clip).masks


def test_gradient_loss__is_the_same_on_a_clip_turned_to_portrait(tmp_path):
    """All terms share one conversion of pixels to network inputs, so exchanging x and y changes no loss."""
    folder = draw(tmp_path / "wide")
    transposed = tmp_path / "tall" / "demo"
    for suffix in ("", "_maskrcnn"):
        target = transposed.with_name("demo" + suffix)
        target.mkdir(parents=True)
        for path in folder.with_name("demo" + suffix).iterdir():
            Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(target / path.name)
    target = transposed.with_name("demo_flow")
    target.mkdir()
    for path in folder.with_name("demo_flow").iterdir():
        np.save(target / path.name, np.load(path).transpose(1, 0, 2)[..., ::-1])
    config = tiny_config(folder, tmp_path, sampling="published")
    wide, tall = (load_video(open_clip(path, config), CPU) for path in (folder, transposed))
    model, swapped = AtlasModel(config), AtlasModel(config)
    swapped.load_state_dict(model.state_dict())
    with torch.no_grad():  # swap the roles of x and y in the inputs of mappings and opacity
        for network in swapped.mappings:
            network.hidden[0].weight.copy_(network.hidden[0].weight[:, [1, 0, 2]])
        weight = swapped.alphas[0].hidden[0].weight
        order = torch.arange(weight.shape[1]).view(-1, 3)[:, [1, 0, 2]].flatten()
        weight.copy_(weight[:, order])
        points = torch.cartesian_prod(torch.arange(48), torch.arange(32), torch.arange(4))
        wide_terms = loss_terms(model, wide, make_published_batch(wide, points, config), config, 0)
        tall_terms = loss_terms(swapped, tall, make_published_batch(tall, points[:, [1, 0, 2]], config), config, 0)
    for name in wide_terms:
        assert wide_terms[name].item() == pytest.approx(tall_terms[name].item(), rel=1e-4), name


def test_empty_selections__the_mean_of_nothing_is_a_differentiable_zero():
    values = torch.ones(3, requires_grad=True)
    mean = loss_utils.masked_mean(values, torch.zeros(3))
    mean.backward()
    assert mean.item() == 0
    assert values.grad.tolist() == [0, 0, 0]


def test_empty_selections__training_survives_a_clip_without_valid_flow(clip_folder, tmp_path):
    for path in clip_folder.with_name("demo_flow").iterdir():
        np.save(path, np.full((32, 48, 2), 1000, np.float32))
    trainer = Trainer(tiny_config(clip_folder, tmp_path), tmp_path)
    for _ in range(3):
        assert all(torch.isfinite(value) for value in trainer.step().values())
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_consistency__a_match_that_leaves_the_frame_is_invalid():
    flow = np.zeros((6, 8, 2), np.float32)
    flow[..., 0] = 0.4  # px; the way back by zero flow ends within a pixel of the start
    valid = consistent_pixels(flow, np.zeros_like(flow))
    assert valid[:, :-1].all()
    assert not valid[:, -1].any()


def test_borders__the_last_column_and_row_are_left_out_of_the_gradient_term(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path)
    video = load_video(open_clip(clip_folder, config), CPU)
    pixels = torch.tensor([[46, 30, 0], [47, 30, 0], [46, 31, 0], [47, 31, 0]])
    assert make_published_batch(video, pixels, config).gradient_weight.tolist() == [1, 0, 0, 0]


def test_errors__a_failing_evaluation_stops_the_run(clip_folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr(training.loop, "evaluate", fail)
    trainer = start_run(tiny_config(clip_folder, tmp_path / "runs"))
    with pytest.raises(RuntimeError, match="caught fire"):
        trainer.run()
    assert trainer.checkpoint_path.exists()


@pytest.mark.slow
def test_errors__a_clip_with_empty_masks_is_evaluated(clip_folder, tmp_path, capsys):
    for path in clip_folder.with_name("demo_maskrcnn").iterdir():
        Image.new("L", (48, 32)).save(path)
    trainer = start_run(tiny_config(clip_folder, tmp_path / "runs", alpha_bootstrapping_factor=1e6, learning_rate=0.02))
    trainer.run()
    assert (trainer.folder / "000004" / "index.html").exists()
    assert "all masks are empty" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints__the_last_iteration_is_saved(clip_folder, tmp_path):
    trainer = start_run(tiny_config(clip_folder, tmp_path, iters_num=5, evaluate_every=100, checkpoint_every=100))
    trainer.run()
    assert torch.load(trainer.checkpoint_path, weights_only=True)["iteration"] == 5


@pytest.mark.slow
def test_resume__goes_on_in_the_same_folder_with_the_same_curve(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path / "whole", iters_num=6, evaluate_every=100)
    whole = start_run(config)
    whole.run()
    interrupted = start_run(replace(config, results_folder_name=str(tmp_path / "interrupted")))
    for _ in range(2):
        interrupted.step()
    interrupted.save()
    interrupted.step()  # this step is lost, because no checkpoint follows it
    resumed = resume_run(interrupted.folder)
    resumed.run()
    assert resumed.folder == interrupted.folder
    expected, actual = curve(whole.folder), curve(resumed.folder)
    assert {3, 4, 5, 6} <= actual.keys()
    for iteration in (3, 4, 5, 6):
        assert actual[iteration] == expected[iteration]


@pytest.mark.slow
def test_networks__are_built_in_one_place_from_the_config(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path, positional_encoding_num_atlas=3, number_of_channels_atlas=12)
    trainer = start_run(config)
    trainer.run()
    run = open_run(trainer.folder)
    assert run.model.atlas.hidden[0].weight.shape == (12, 12)
    assert find_calls("IMLP") == ["implicit_neural_networks.py"] * 3, "mapping, alpha and atlas networks"


def test_only_evaluate__honours_data_folder_and_video_name(finished_run, shared_clip, tmp_path):
    other = draw(tmp_path / "elsewhere", frames=3)
    other.rename(other.with_name("cat"))
    run = open_run(finished_run, video_name="cat", data_folder=tmp_path / "elsewhere")
    assert run.clip.folder == tmp_path / "elsewhere" / "cat"
    assert len(run.clip) == 3


@pytest.mark.slow
def test_flags__switches_take_no_value_and_each_edit_can_be_given_alone():

    common = ["--trained_model_folder=F", "--output_folder=O"]
    parsed = only_edit.make_edit_parser().parse_args([*common, "--edit_background_path=b.png"])
    only_edit.check_flags(parsed)
    assert parsed.use_edit_frame is False
    with pytest.raises(SystemExit):
        only_edit.make_edit_parser().parse_args([*common, "--use_edit_frame", "False"])
    for path, tree in project_sources().items():
        types = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "type"]
        assert not any(isinstance(value, ast.Name) and value.id == "bool" for value in types), path


def test_edits__an_atlas_position_is_written_and_read_on_the_same_grid():
    """Sampling at the position of a texel gives this texel, at the border too and at any size."""
    view = AtlasView(-0.7, -0.8, 0.6)
    for size in (7, 50):
        image = torch.rand(size, size, 4, generator=torch.Generator().manual_seed(0))
        atlas_uv = view.uv_grid(size).view(size, size, 2)
        torch.testing.assert_close(sample_image(image, view.to_pixels(atlas_uv, size)), image, atol=1e-4, rtol=0)


def test_frame_edit__white_paint_over_a_soft_edge_has_no_dark_fringe():

    source = np.full((1, 11, 3), 0.5, np.float32)
    visibility = np.linspace(0, 1, 11, dtype=np.float32)[None]
    white = np.ones((1, 11, 4), np.float32)
    edited = apply_edits(source, [(white, visibility), (white, 1 - visibility)])
    np.testing.assert_allclose(edited, 1, atol=1e-6)


def test_alpha__reaches_zero_and_one_in_our_own_mode(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path)
    model, clip = AtlasModel(config), open_clip(clip_folder, config)
    with torch.no_grad():
        model.alphas[0].hidden[-1].bias.fill_(50)
    full, published = (next(render_frames(model, clip, full_range)) for full_range in (True, False))
    assert full.alpha.max() == 1
    assert published.alpha.max() == pytest.approx(0.991)


def test_speed__an_iteration_neither_copies_nor_prints_nor_waits(clip_folder, tmp_path, monkeypatch, capsys):
    trainer = Trainer(tiny_config(clip_folder, tmp_path), tmp_path)

    def refuse(*_, **__):
        raise AssertionError("the loop waited for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    capsys.readouterr()
    terms = trainer.learner.batch_terms(trainer.iteration)
    monkeypatch.undo()
    assert torch.isfinite(terms["color"])
    assert capsys.readouterr().out == ""


def copy_run(run: Path, copy: Path, frames: int) -> Path:
    """Copy the checkpoint and the config of a run, with another number of frames; return the copy."""
    copy.mkdir()
    (copy / "checkpoint").write_bytes((run / "checkpoint").read_bytes())
    write_config(copy / "config.json", replace(load_config(run / "config.json"), maximum_number_of_frames=frames))
    return copy


def measure_passes(action: Callable[[], object], frames: int, monkeypatch) -> list[int]:
    """Run an action and return the memory of numpy arrays, in bytes, at the end of each pass over a clip of `frames`.

    Memory is measured whenever the last frame is rendered or read.
    """
    passes: list[int] = []
    make_frame = Frame.__init__

    def make_frame_and_measure(self, *arguments, **keywords):
        make_frame(self, *arguments, **keywords)
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.ndarray):
                setattr(self, field.name, value.copy())  # tracemalloc sees memory of numpy, but not of torch
        if self.t == frames - 1:
            gc.collect()
            passes.append(tracemalloc.get_traced_memory()[0])

    with monkeypatch.context() as patch:
        patch.setattr(Frame, "__init__", make_frame_and_measure)
        tracemalloc.start()
        try:
            action()
        finally:
            tracemalloc.stop()
    return passes


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    """Folder of a finished run on a clip of many frames."""
    width, height = LARGE
    clip = draw(tmp_path_factory.mktemp("long"), width=width, height=height, frames=MANY_FRAMES)
    trainer = start_run(tiny_config(clip, tmp_path_factory.mktemp("runs"), maximum_number_of_frames=MANY_FRAMES))
    trainer.run()
    return trainer.folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bytes_per_pixel"), [("evaluation", 4), ("edit", 4), ("export", 4)])
def test_memory__holds_no_array_of_all_frames(long_run, tmp_path, monkeypatch, kind, bytes_per_pixel):
    """The published code holds 34 float64 arrays of all frames, 272 bytes per pixel; a list of frames takes 20 to 32.

    Frames are processed one at a time here, and none waits for an encoder: how many are in work at the same time, and
    how many wait, differs from run to run.
    """
    monkeypatch.setattr("parallel.side_by_side.count_cores", lambda: 1)
    monkeypatch.setattr("media.videos.QUEUED_FRAMES", 0)
    media.write_png(tmp_path / "paint.png", np.full((64, 64, 4), 200, np.uint8))

    def process(run: Path, name: str) -> None:
        flags = [f"--trained_model_folder={run}", f"--output_folder={tmp_path / name}"]
        if kind == "evaluation":
            evaluate(open_run(run), tmp_path / name)
        elif kind == "edit":
            only_edit.main([*flags, f"--edit_background_path={tmp_path / 'paint.png'}"])
        else:
            export_layers.main([*flags, "--kinds", "alpha"])

    short_run = copy_run(long_run, tmp_path / "short", FEW_FRAMES)
    process(short_run, "first")  # fills the caches of libraries
    few = measure_passes(lambda: process(short_run, "few"), FEW_FRAMES, monkeypatch)
    many = measure_passes(lambda: process(long_run, "many"), MANY_FRAMES, monkeypatch)
    assert len(few) == len(many) > 0
    additional_pixels = (MANY_FRAMES - FEW_FRAMES) * LARGE[0] * LARGE[1]
    for memory_few, memory_many in zip(few, many, strict=True):
        assert memory_many - memory_few < additional_pixels * bytes_per_pixel


def test_video__keeps_fps_and_aspect_rounds_values_and_offers_png_frames(tmp_path):
    path = tmp_path / "odd.mp4"
    with media.VideoWriter(path, fps=23.976) as video:
        for _ in range(5):
            video.write(np.full((35, 51, 3), 100, np.uint8))
    metadata = video_metadata(path)
    assert metadata["fps"] == pytest.approx(23.98, abs=0.01)
    assert metadata["size"] == (52, 36)
    assert media.to_8_bit(np.array([0.5, 1.2, -1, 99.6 / 255], np.float32)).tolist() == [128, 255, 0, 100]


def test_video__an_encoder_that_fails_is_an_error_and_leaves_no_file(tmp_path):
    failing = media.VideoWriter(tmp_path / "v.mp4", 10, preset="no such preset")
    with pytest.raises(OSError, match="the encoder stopped"), failing as video:
        for _ in range(100):
            video.write(np.zeros((64, 64, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_video__a_name_that_looks_like_a_protocol_is_a_file_name(tmp_path):
    (tmp_path / "take:2").mkdir()
    with media.VideoWriter(tmp_path / "take:2" / "a:b %d.mp4", 10) as video:
        video.write(np.zeros((16, 16, 3), np.uint8))
    assert (tmp_path / "take:2" / "a:b %d.mp4").stat().st_size > 0


def test_names__frame2_comes_before_frame10(tmp_path):
    for number in (10, 2, 1):
        Image.new("RGB", (4, 4)).save(tmp_path / f"frame{number}.png")
    assert [path.stem for path in media.list_images(tmp_path)] == ["frame1", "frame2", "frame10"]
