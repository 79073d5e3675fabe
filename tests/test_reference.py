"""Agreement with numbers recorded from the published implementation."""

import math

import numpy as np
import pytest
import torch

import media
from editing.layer_edit import LayerEdit
from editing.layered_files import read_paint
from editing.render_edits import render_edited_frames, sample_edit_layers
from editing.requests import EditRequest
from evaluation.image_metrics import psnr
from implicit_neural_networks import positional_encoding
from media.clip import open_clip
from media.flows import BACKWARD, FORWARD
from rendering.atlas_view import fit_atlas_views, render_atlas
from rendering.blending import apply_edits
from rendering.frames import render_frames
from rendering.resampling import sample_image
from rendering.trained_run import TrainedRun, load_model
from training.networks import loss_terms
from training.sampling import make_published_batch
from unwrap_utils import load_video, store_flow

CLOSE = 1e-4  # relative, as the reference promises
TERMS = {
    "color": ("rgb", 5000),
    "gradient": ("gradient", 1000),
    "sparsity": ("sparsity", 1000),
    "rigidity_foreground": ("rigidity_foreground", 1),
    "rigidity_background": ("rigidity_background", 1),
    "global_rigidity_foreground": ("global_rigidity_foreground", 5),
    "global_rigidity_background": ("global_rigidity_background", 50),
    "flow_foreground": ("flow_foreground", 5),
    "flow_background": ("flow_background", 5),
    "flow_alpha": ("flow_alpha", 49),
    "bootstrapping": ("bootstrapping", 2000),
}


@pytest.fixture
def model(reference_folder, reference_config):
    return load_model(reference_folder / "trained" / "checkpoint", reference_config, torch.device("cpu"))


@pytest.fixture(scope="module")
def clip(reference_folder, reference_config):
    return open_clip(reference_folder / "data" / "tiny", reference_config)


@pytest.fixture(scope="module")
def published_flow_valid(expected):
    """(2, T, H, W): what the published code takes for valid, border quirks included."""
    return np.stack([expected["flow_valid_forward"], expected["flow_valid_backward"]]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def published_video(clip, published_flow_valid):
    """The clip with the published validity of flow, whose terms the reference recorded."""
    video = load_video(clip, torch.device("cpu"))
    for t in range(len(clip)):
        for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
            if 0 <= t + step < len(clip):
                store_flow(video, direction, t, clip.flow(t, direction), published_flow_valid[direction, t])
    return video


def published_border_batch(video, pixels, config):
    """A batch in which border pixels count in the gradient term with zero differences, as published."""
    batch = make_published_batch(video, pixels, config)
    _, height, width = video.size
    batch.gradient_weight = torch.ones_like(batch.gradient_weight)
    batch.gradient_target[0, pixels[:, 0] == width - 1] = 0
    batch.gradient_target[1, pixels[:, 1] == height - 1] = 0
    return batch


def tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def test_the_positional_encoding_agrees(expected, model):
    encoded = positional_encoding(tensor(expected["encoding_in"]), model.atlas.frequencies[:4])
    np.testing.assert_allclose(encoded, expected["encoding_out_4_frequencies"], rtol=CLOSE, atol=1e-6)


@torch.no_grad()
def test_the_four_networks_agree(expected, model):
    outputs = {
        "atlas_raw": model.atlas(tensor(expected["atlas_uv"])),
        "mapping1_raw": model.mappings[0](tensor(expected["xyt"])),
        "mapping2_raw": model.mappings[1](tensor(expected["xyt"])),
        "alpha_raw": model.alphas[0](tensor(expected["xyt"])),
    }
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], rtol=CLOSE, atol=1e-6, err_msg=name)


@torch.no_grad()
def test_a_batch_of_pixels_agrees(expected, model, published_video):
    xyt = published_video.normalize(tensor(expected["points_x_y_t"]).float())
    sample = model(xyt)
    outputs = {
        "batch_xyt": xyt,
        "batch_uv_foreground": sample.uv[0],
        "batch_uv_background": sample.uv[1],
        "batch_alpha": sample.alpha[0],
        "batch_rgb_foreground": sample.colors[0],
        "batch_rgb_background": sample.colors[1],
        "batch_rgb": sample.rgb,
    }
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], rtol=CLOSE, atol=1e-6, err_msg=name)


def test_every_loss_term_and_the_total_agree(expected, model, published_video, reference_config):
    batch = published_border_batch(published_video, tensor(expected["points_x_y_t"]), reference_config)
    terms = loss_terms(model, published_video, batch, reference_config, iteration=0)
    assert terms.keys() == TERMS.keys()
    for name, (recorded, coefficient) in TERMS.items():
        assert terms[name].item() / coefficient == pytest.approx(expected[f"loss_{recorded}"], rel=CLOSE), name
    total = sum(terms.values()).item()
    assert total == pytest.approx(expected["loss_total_with_bootstrapping_and_global_rigidity"], rel=CLOSE)


def test_the_gradient_of_every_network_agrees(expected, model, published_video, reference_config):
    batch = published_border_batch(published_video, tensor(expected["points_x_y_t"]), reference_config)
    sum(loss_terms(model, published_video, batch, reference_config, iteration=0).values()).backward()
    for name, network in model.networks_by_name().items():
        norm = torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).norm().item()
        recorded = expected["gradnorm_" + name.removeprefix("model_F_").removeprefix("F_")]
        assert norm == pytest.approx(recorded, rel=CLOSE), name


def test_ten_optimizer_steps_agree(expected, model, published_video, reference_config):
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=1e-4)
    totals = []
    for pixels in expected["steps_points_x_y_t"]:
        batch = published_border_batch(published_video, tensor(pixels), reference_config)
        total = sum(loss_terms(model, published_video, batch, reference_config, iteration=0).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    np.testing.assert_allclose(totals, expected["steps_total_loss"], rtol=CLOSE)


def test_our_gradient_term_leaves_the_border_out(expected, model, published_video, reference_config):
    """Changed on purpose, so the number is ours: border pixels, 23 of these 400, have no neighbour to differ from."""
    batch = make_published_batch(published_video, tensor(expected["points_x_y_t"]), reference_config)
    terms = loss_terms(model, published_video, batch, reference_config, iteration=0)
    assert int((batch.gradient_weight == 0).sum()) == 23
    assert terms["gradient"].item() / 1000 == pytest.approx(0.0310883, rel=1e-4)
    assert terms["gradient"].item() / 1000 != pytest.approx(expected["loss_gradient"], rel=1e-2)


def test_flow_validity_agrees_where_the_match_stays_in_the_frame(clip, published_flow_valid):
    """Ours differs on purpose only where the flow leaves the frame: those matches are invalid."""
    video = load_video(clip, torch.device("cpu"))
    y, x = np.mgrid[: clip.height, : clip.width]
    compared = 0
    for t in range(len(clip)):
        for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
            if not 0 <= t + step < len(clip):
                continue
            flow, ours = clip.flow(t, direction), video.flow_valid[direction, t].numpy()
            end_x, end_y = x + flow[..., 0], y + flow[..., 1]
            stays = (end_x >= 0) & (end_x <= clip.width - 1) & (end_y >= 0) & (end_y <= clip.height - 1)
            np.testing.assert_array_equal(ours[stays], published_flow_valid[direction, t][stays])
            assert not ours[~stays].any()
            compared += stays.sum()
    assert compared > 0.9 * 10 * clip.height * clip.width


@pytest.fixture
def frames(model, clip):
    return list(render_frames(model, clip, full_range=False))


def test_reconstruction_alpha_and_psnr_agree(expected, frames, clip):
    rgb, alpha = np.stack([f.rgb for f in frames]), np.stack([f.alpha[0] for f in frames])
    np.testing.assert_allclose(rgb, expected["reconstruction"], atol=1e-5)
    np.testing.assert_allclose(alpha, expected["alpha"], atol=1e-5)
    found = np.mean([psnr(frame.rgb, clip.frame(frame.t) / 255) for frame in frames])
    assert found == pytest.approx(expected["psnr"], rel=CLOSE)


@pytest.mark.slow
def test_the_background_crop_and_both_atlases_agree(expected, frames, model):
    foreground, background = fit_atlas_views(model, frames)
    crop = (background.left, background.top, background.edge)
    np.testing.assert_allclose(crop, expected["background_crop_minx_miny_edge"], rtol=CLOSE)
    for view, name in ((foreground, "foreground"), (background, "background")):
        image = render_atlas(model, view, 1000)[::10, ::10]
        np.testing.assert_allclose(image, expected[f"atlas_{name}_every_10th"], atol=1e-4, err_msg=name)


@pytest.fixture
def edits(reference_folder, model, frames):
    views = fit_atlas_views(model, frames)
    paths = (reference_folder / "edit_foreground.png", reference_folder / "edit_background.png")
    return [
        LayerEdit(layer, torch.from_numpy(read_paint(path)[0].rgba), views[layer], math.inf)
        for layer, path in enumerate(paths)
    ]


def difference(ours, published) -> float:
    return float(np.abs(np.stack(ours).astype(int) - published.astype(int)).mean())


def test_edited_frames_agree_to_a_grey_level(expected, clip, model, frames, edits):
    """Read on the grid it was written on, an edit lies up to a texel beside the published one; both cut to uint8."""
    run, ours = TrainedRun(model, clip, full_range=False), []
    for frame in frames:
        source, layers = clip.frame(frame.t).astype(np.float32) / 255, sample_edit_layers(run, frame, edits)
        ours.append((apply_edits(source, layers) * 255).astype(np.uint8))
    assert difference(ours, expected["edited_frames_uint8"]) < 1


def test_edited_frames_agree_closely_with_the_published_drift(expected, model, clip, frames, edits):
    """With the published reading, position * 1000 instead of * 999, only rounding is left."""
    for edit in edits:
        edit.sample = lambda places, edit=edit: sample_image(
            edit.rgba, edit.view.to_pixels(places, 1000) * (1000 / 999)
        ).numpy()
    run = TrainedRun(model, clip, full_range=False)
    rounded = [frame for _, frame in render_edited_frames(run, frames, edits, EditRequest())]
    assert difference(rounded, expected["edited_frames_uint8"]) < 0.5  # truncation to uint8 costs half a level


def test_our_edited_frames_are_pinned(expected, model, clip, frames, edits):
    """Changed on purpose: no drift, rounded values. Sharp squares one texel aside make the difference."""
    run = TrainedRun(model, clip, full_range=False)
    ours = [frame for _, frame in render_edited_frames(run, frames, edits, EditRequest())]
    assert difference(ours, expected["edited_frames_uint8"]) == pytest.approx(1.197, abs=0.02)


def test_a_checkpoint_of_ours_has_the_published_keys_shapes_and_optimizer_order(
    reference_folder, reference_config, tmp_path
):
    from dataclasses import replace

    from training.loop import Trainer

    published = torch.load(reference_folder / "trained" / "checkpoint", weights_only=True)
    trainer = Trainer(replace(reference_config, samples_batch=50), tmp_path)
    trainer.step()
    trainer.save()
    ours = torch.load(trainer.checkpoint_path, weights_only=True)
    assert published.keys() - {"random_state"} <= ours.keys()
    for name in published.keys() - {"iteration", "optimizer_all_state_dict"}:
        assert {k: v.shape for k, v in ours[name].items()} == {k: v.shape for k, v in published[name].items()}
    state, published_state = ours["optimizer_all_state_dict"], published["optimizer_all_state_dict"]
    assert [g["params"] for g in state["param_groups"]] == [g["params"] for g in published_state["param_groups"]]
    for number, moments in published_state["state"].items():
        assert state["state"][number]["exp_avg"].shape == moments["exp_avg"].shape


def test_training_goes_on_from_a_published_checkpoint(reference_folder, reference_config, tmp_path):
    from training.loop import Trainer

    trainer = Trainer(reference_config, tmp_path)
    trainer.restore(reference_folder / "trained" / "checkpoint")
    assert trainer.iteration == 1500
    terms = trainer.step()
    assert sum(terms.values()).item() < 1000


def test_the_published_frames_and_masks_are_read_as_they_are(clip, reference_folder):
    mask = clip.mask(clip.masks[0])
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(clip.frame(0), media.read_rgb(reference_folder / "data" / "tiny" / "00000.png"))
