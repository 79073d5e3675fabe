"""What the published code gets wrong, each once, by name: ours must not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, draw, read_log, tiny_config, video_facts
from PIL import Image

import loss_utils
import media
from command_line import UserError
from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from media.flows import resize_flow
from preprocessing.flow_raft import RaftFlow
from rendering.atlas_view import AtlasView
from rendering.frames import render_frames
from rendering.resizing import sample_image
from training.loop import Trainer, resume_run, start_run
from training.networks import loss_terms
from training.sampling import published_batch
from unwrap_utils import consistent_flow, load_video

CPU = torch.device("cpu")


def test_flow_resize__resized_flow_scales_x_by_width_and_y_by_height():
    flow = np.ones((10, 20, 2), np.float32)
    resized = resize_flow(flow, width=60, height=20)
    assert resized.shape == (20, 60, 2)
    np.testing.assert_allclose(resized[..., 0], 3)
    np.testing.assert_allclose(resized[..., 1], 2)


def test_flow_padding__padding_is_cropped_off_the_flow():
    def position_as_flow(a, b):
        y, x = torch.meshgrid(torch.arange(a.shape[2]), torch.arange(a.shape[3]), indexing="ij")
        assert a.shape[2] % 8 == 0
        assert a.shape[3] % 8 == 0
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
    inside = np.zeros((8, 10), bool)
    inside[2:5, 3:7] = True
    palette = Image.fromarray(inside.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # a DAVIS annotation
    grey = (inside * 255).astype(np.uint8)
    pictures = {
        "palette": palette,
        "labels": Image.fromarray(inside.astype(np.uint8)),
        "grey": Image.fromarray(grey),
        "bits": Image.fromarray(grey).convert("1"),
        "rgb": Image.fromarray(np.dstack([grey] * 3)),
        "red": Image.fromarray(np.dstack([grey, 0 * grey, 0 * grey])),
        "opaque rgba": Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])),
        "cut-out rgba": Image.fromarray(np.dstack([np.full_like(grey, 90)] * 3 + [grey])),
        "grey palette": Image.fromarray(grey).quantize(2),
        "several labels": Image.fromarray(inside.astype(np.uint8) * 2),
        "16-bit labels": Image.fromarray(inside.astype(np.uint16)),
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
    """One conversion of pixels to network inputs for all terms: x and y are interchangeable."""
    folder = draw(tmp_path / "wide")
    turned = tmp_path / "tall" / "demo"
    for suffix in ("", "_maskrcnn"):
        target = turned.with_name("demo" + suffix)
        target.mkdir(parents=True)
        for path in folder.with_name("demo" + suffix).iterdir():
            Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(target / path.name)
    target = turned.with_name("demo_flow")
    target.mkdir()
    for path in folder.with_name("demo_flow").iterdir():
        np.save(target / path.name, np.load(path).transpose(1, 0, 2)[..., ::-1])
    config = tiny_config(folder, tmp_path, sampling="published")
    wide, tall = (load_video(open_clip(each, config), CPU) for each in (folder, turned))
    model, swapped = AtlasModel(config), AtlasModel(config)
    swapped.load_state_dict(model.state_dict())
    with torch.no_grad():  # swap the roles of x and y in the inputs of mappings and opacity
        for network in swapped.mappings:
            network.hidden[0].weight.copy_(network.hidden[0].weight[:, [1, 0, 2]])
        first = swapped.alphas[0].hidden[0].weight
        order = torch.arange(first.shape[1]).view(-1, 3)[:, [1, 0, 2]].flatten()
        first.copy_(first[:, order])
        points = torch.cartesian_prod(torch.arange(48), torch.arange(32), torch.arange(4))
        ours = loss_terms(model, wide, published_batch(wide, points, config), config, 0)
        theirs = loss_terms(swapped, tall, published_batch(tall, points[:, [1, 0, 2]], config), config, 0)
    for name in ours:
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-4), name


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
    flow[..., 0] = 0.4  # returning by zero flow is within a pixel
    valid = consistent_flow(flow, np.zeros_like(flow))
    assert valid[:, :-1].all()
    assert not valid[:, -1].any()


def test_borders__the_last_column_and_row_are_left_out_of_the_gradient_term(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path)
    video = load_video(open_clip(clip_folder, config), CPU)
    pixels = torch.tensor([[46, 30, 0], [47, 30, 0], [46, 31, 0], [47, 31, 0]])
    assert published_batch(video, pixels, config).gradient_weight.tolist() == [1, 0, 0, 0]


def test_errors__a_failing_evaluation_stops_the_run(clip_folder, tmp_path, monkeypatch):
    import training.loop

    def fail(*_, **__):
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr(training.loop, "evaluate", fail)
    trainer = start_run(tiny_config(clip_folder, tmp_path / "runs"))
    with pytest.raises(RuntimeError, match="caught fire"):
        trainer.run()
    assert trainer.checkpoint_path.exists()


def test_errors__a_clip_without_any_mask_is_evaluated_all_the_same(clip_folder, tmp_path, capsys):
    for path in clip_folder.with_name("demo_maskrcnn").iterdir():
        Image.new("L", (48, 32)).save(path)
    trainer = start_run(tiny_config(clip_folder, tmp_path / "runs", alpha_bootstrapping_factor=1e6, learning_rate=0.02))
    trainer.run()
    assert (trainer.folder / "000004" / "index.html").exists()
    assert "all masks are empty" in capsys.readouterr().err


def test_checkpoints__the_last_iteration_is_saved(clip_folder, tmp_path):
    trainer = start_run(tiny_config(clip_folder, tmp_path, iters_num=5, evaluate_every=100, checkpoint_every=100))
    trainer.run()
    assert torch.load(trainer.checkpoint_path, weights_only=True)["iteration"] == 5


def test_resume__goes_on_in_the_same_folder_with_the_same_curve(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path / "whole", iters_num=6, evaluate_every=100)
    whole = start_run(config)
    whole.run()
    broken = start_run(replace(config, results_folder_name=str(tmp_path / "broken")))
    for _ in range(2):
        broken.step()
    broken.save()
    broken.step()  # lost: after the checkpoint
    resumed = resume_run(broken.folder)
    resumed.run()
    assert resumed.folder == broken.folder
    curves = [
        {row["iteration"]: row["total"] for row in read_log(run.folder) if "total" in row} for run in (whole, resumed)
    ]
    assert {3, 4, 5, 6} <= curves[1].keys()
    for iteration in (3, 4, 5, 6):
        assert curves[1][iteration] == curves[0][iteration]


def test_networks__are_built_in_one_place_from_the_config(clip_folder, tmp_path):
    config = tiny_config(clip_folder, tmp_path, positional_encoding_num_atlas=3, number_of_channels_atlas=12)
    trainer = start_run(config)
    trainer.run()
    from rendering.trained_run import open_run

    run = open_run(trainer.folder)
    assert run.model.atlas.hidden[0].weight.shape == (12, 12)
    sources = [path.read_text() for path in ROOT.glob("*.py")]
    assert sum(len(re.findall(r"\bIMLP\(", text.replace("class IMLP(", ""))) for text in sources) == 3


def test_only_evaluate__honours_data_folder_and_video_name(trained, drawn, tmp_path):
    from rendering.trained_run import open_run

    other = draw(tmp_path / "elsewhere", frames=3)
    other.rename(other.with_name("cat"))
    run = open_run(trained, video_name="cat", data_folder=tmp_path / "elsewhere")
    assert run.clip.folder == tmp_path / "elsewhere" / "cat"
    assert len(run.clip) == 3


def test_flags__switches_are_switches_and_either_edit_may_come_alone():
    import only_edit

    common = ["--trained_model_folder=F", "--output_folder=O"]
    parsed = only_edit.edit_flags().parse_args([*common, "--edit_background_path=b.png"])
    only_edit.check_flags(parsed)
    assert parsed.use_edit_frame is False
    with pytest.raises(SystemExit):
        only_edit.edit_flags().parse_args([*common, "--use_edit_frame", "False"])


def test_edits__an_atlas_position_is_written_and_read_on_the_same_grid():
    """Every texel's own place reads that texel, borders included, at any size."""
    view = AtlasView(-0.7, -0.8, 0.6)
    for size in (7, 50):
        image = torch.rand(size, size, 4, generator=torch.Generator().manual_seed(0))
        places = view.uv_grid(size).view(size, size, 2)
        torch.testing.assert_close(sample_image(image, view.to_pixels(places, size)), image, atol=1e-4, rtol=0)


def test_frame_edit__white_paint_over_a_soft_edge_has_no_dark_fringe():
    from rendering.blending import apply_edits

    source = np.full((1, 11, 3), 0.5, np.float32)
    share = np.linspace(0, 1, 11, dtype=np.float32)[None]
    white = np.ones((1, 11, 4), np.float32)
    painted = apply_edits(source, [(white, share), (white, 1 - share)])
    np.testing.assert_allclose(painted, 1, atol=1e-6)


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


def test_memory__frames_are_rendered_one_at_a_time(drawn, tmp_path):
    from collections.abc import Iterator

    config = tiny_config(drawn, tmp_path)
    frames = render_frames(AtlasModel(config), open_clip(drawn, config), True)
    assert isinstance(frames, Iterator)
    assert next(frames).rgb.shape == (32, 48, 3)


def test_video__keeps_fps_and_aspect_rounds_values_and_offers_png_frames(tmp_path):
    path = tmp_path / "odd.mp4"
    with media.VideoWriter(path, fps=23.976) as video:
        for _ in range(5):
            video.write(np.full((35, 51, 3), 100, np.uint8))
    information = video_facts(path)
    assert information["fps"] == pytest.approx(23.98, abs=0.01)
    assert information["size"] == (52, 36)
    assert media.to_8_bit(np.float32([0.5, 1.2, -1, 99.6 / 255])).tolist() == [128, 255, 0, 100]


def test_video__an_encoder_that_fails_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(media.videos.imageio_ffmpeg, "get_ffmpeg_exe", lambda: "false")
    with pytest.raises(OSError, match="the encoder stopped"), media.VideoWriter(tmp_path / "v.mp4", 10) as video:
        for _ in range(100):
            video.write(np.zeros((64, 64, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_video__a_name_that_looks_like_a_protocol_is_just_a_name(tmp_path):
    (tmp_path / "take:2").mkdir()
    with media.VideoWriter(tmp_path / "take:2" / "a:b %d.mp4", 10) as video:
        video.write(np.zeros((16, 16, 3), np.uint8))
    assert (tmp_path / "take:2" / "a:b %d.mp4").stat().st_size > 0


def test_names__frame2_comes_before_frame10(tmp_path):
    for number in (10, 2, 1):
        Image.new("RGB", (4, 4)).save(tmp_path / f"frame{number}.png")
    assert [path.stem for path in media.list_images(tmp_path)] == ["frame1", "frame2", "frame10"]
