"""Which pixels an iteration draws: both samplings promise the same expected losses."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from media.flows import BACKWARD, FORWARD
from training.networks import loss_terms
from training.sampling import draw_batch, published_batch, tile_batch
from unwrap_utils import load_video


@pytest.fixture(scope="module")
def config(drawn, tmp_path_factory):
    return tiny_config(drawn, tmp_path_factory.mktemp("runs"), resx=24, resy=16, tile_size=3)


@pytest.fixture(scope="module")
def video(config, drawn):
    return load_video(open_clip(drawn, config), torch.device("cpu"))


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(3)
    return AtlasModel(config)


def every(low, high):
    ranges = [torch.arange(a, b) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*ranges)


@torch.no_grad()
def test_tiles_and_published_sampling_expect_the_same_loss_in_every_term(video, model, config):
    """Expectations are exact here: all pixels of the clip at once, against all tiles in both flow directions."""
    frames, height, width = video.size
    pixels = every((0, 0, 0), (width, height, frames))
    corners = every((1 - config.tile_size, 1 - config.tile_size, 0), (width, height, frames))
    directions = torch.tensor([FORWARD, BACKWARD]).repeat_interleave(len(corners))
    tiles = tile_batch(video, corners.repeat(2, 1), directions, config)
    ours = loss_terms(model, video, tiles, config, iteration=0)
    published = loss_terms(model, video, published_batch(video, pixels, config), config, iteration=0)
    assert ours.keys() == published.keys()
    for name, value in published.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_tiles_evaluate_every_network_twice_per_pixel_where_published_needs_7_5_and_6(video, config):
    generator = torch.Generator().manual_seed(0)
    tiles = draw_batch(video, config, generator)
    pixels = len(tiles.samples)
    assert (len(tiles.points_px), tiles.num_alpha, tiles.num_color) == (2 * pixels, 2 * pixels, pixels)
    published = draw_batch(video, replace(config, sampling="published"), generator)
    pixels = len(published.samples)
    assert (len(published.points_px), published.num_alpha, published.num_color) == (7 * pixels, 5 * pixels, 3 * pixels)


def test_a_batch_holds_about_the_asked_number_of_pixels(video, config):
    generator = torch.Generator().manual_seed(0)
    assert abs(len(draw_batch(video, config, generator).samples) - config.samples_batch) < config.tile_size**2
    assert len(draw_batch(video, replace(config, sampling="published"), generator).samples) == config.samples_batch


def test_every_pixel_is_drawn_equally_often_by_tiles(video, config):
    frames, height, width = video.size
    corners = every((1 - config.tile_size, 1 - config.tile_size, 0), (width, height, frames))
    batch = tile_batch(video, corners, torch.zeros(len(corners), dtype=torch.long), config)
    inside = batch.samples_weight > 0
    x, y, t = batch.points_px[: batch.num_color][inside].long().unbind(1)
    counts = torch.zeros(frames, height, width).index_put_((t, y, x), torch.ones(len(x)), accumulate=True)
    assert (counts == config.tile_size**2).all()


@pytest.mark.parametrize("sampling", ["tiles", "published"])
def test_the_gradient_target_is_the_difference_of_neighbouring_pixels(video, config, sampling):
    batch = draw_batch(video, replace(config, sampling=sampling), torch.Generator().manual_seed(0))
    chosen = batch.gradient_weight > 0
    x, y, t = batch.points_px[batch.gradient[0]][chosen].long().unbind(1)
    frames = video.frames / 255
    across = frames[t, y, x + 1] - frames[t, y, x]
    down = frames[t, y + 1, x] - frames[t, y, x]
    torch.testing.assert_close(batch.gradient_target[:, chosen], torch.stack((across, down)))


@pytest.mark.parametrize("sampling", ["tiles", "published"])
def test_matches_lie_where_the_flow_points(video, config, sampling, drawn):
    clip = open_clip(drawn, config)
    batch = draw_batch(video, replace(config, sampling=sampling), torch.Generator().manual_seed(0))
    matches = batch.points_px[batch.num_color : batch.num_alpha]
    for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
        for k in torch.nonzero(batch.flow_weight[direction]).flatten()[:20]:
            x, y, t = batch.points_px[batch.flow[k]].int().tolist()
            dx, dy = clip.flow(t, direction)[y, x]
            assert matches[k].tolist() == pytest.approx([x + dx, y + dy, t + step], abs=1e-2)
