"""The pixels of an iteration: both ways of sampling have the same expected losses."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from implicit_neural_networks import AtlasModel
from media.clip import open_clip
from media.flows import BACKWARD, FORWARD
from training.networks import loss_terms
from training.sampling import draw_batch, make_published_batch, make_tile_batch
from unwrap_utils import load_video


@pytest.fixture(scope="module")
def config(shared_clip, tmp_path_factory):
    return tiny_config(shared_clip, tmp_path_factory.mktemp("runs"), resx=24, resy=16, tile_size=3)


@pytest.fixture(scope="module")
def video(config, shared_clip):
    return load_video(open_clip(shared_clip, config), torch.device("cpu"))


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(3)
    return AtlasModel(config)


def all_points(low, high):
    """Return all integer points (N, 3) from low to high - 1."""
    ranges = [torch.arange(first, end) for first, end in zip(low, high, strict=True)]
    return torch.cartesian_prod(*ranges)


@torch.no_grad()
def test_tiles_and_published_sampling_expect_the_same_loss_in_every_term(video, model, config):
    """All pixels of the clip are compared with all tiles in both flow directions, so the expectations are exact."""
    frames, height, width = video.size
    pixels = all_points((0, 0, 0), (width, height, frames))
    corners = all_points((1 - config.tile_size, 1 - config.tile_size, 0), (width, height, frames))
    directions = torch.tensor([FORWARD, BACKWARD]).repeat_interleave(len(corners))
    tiles = make_tile_batch(video, corners.repeat(2, 1), directions, config)
    tile_terms = loss_terms(model, video, tiles, config, iteration=0)
    published_terms = loss_terms(model, video, make_published_batch(video, pixels, config), config, iteration=0)
    assert tile_terms.keys() == published_terms.keys()
    for name, value in published_terms.items():
        assert tile_terms[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_tiles_evaluate_fewer_points_per_pixel_than_published_sampling(video, config):
    rng = torch.Generator().manual_seed(0)
    tiles = draw_batch(video, config, rng)
    pixels = len(tiles.samples)
    assert (len(tiles.points_px), tiles.num_alpha, tiles.num_color) == (2 * pixels, 2 * pixels, pixels)
    published = draw_batch(video, replace(config, sampling="published"), rng)
    pixels = len(published.samples)
    assert (len(published.points_px), published.num_alpha, published.num_color) == (7 * pixels, 5 * pixels, 3 * pixels)


def test_a_batch_holds_about_the_number_of_pixels_of_the_config(video, config):
    rng = torch.Generator().manual_seed(0)
    assert abs(len(draw_batch(video, config, rng).samples) - config.samples_batch) < config.tile_size**2
    assert len(draw_batch(video, replace(config, sampling="published"), rng).samples) == config.samples_batch


def test_every_pixel_is_drawn_equally_often_by_tiles(video, config):
    frames, height, width = video.size
    corners = all_points((1 - config.tile_size, 1 - config.tile_size, 0), (width, height, frames))
    batch = make_tile_batch(video, corners, torch.zeros(len(corners), dtype=torch.long), config)
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
    dx = frames[t, y, x + 1] - frames[t, y, x]
    dy = frames[t, y + 1, x] - frames[t, y, x]
    torch.testing.assert_close(batch.gradient_target[:, chosen], torch.stack((dx, dy)))


@pytest.mark.parametrize("sampling", ["tiles", "published"])
def test_matches_lie_where_the_flow_points(video, config, sampling, shared_clip):
    clip = open_clip(shared_clip, config)
    batch = draw_batch(video, replace(config, sampling=sampling), torch.Generator().manual_seed(0))
    matches = batch.points_px[batch.num_color : batch.num_alpha]
    for direction, step in ((FORWARD, 1), (BACKWARD, -1)):
        for k in torch.nonzero(batch.flow_weight[direction]).flatten()[:20]:
            x, y, t = batch.points_px[batch.flow[k]].int().tolist()
            dx, dy = clip.flow(t, direction)[y, x]
            assert matches[k].tolist() == pytest.approx([x + dx, y + dy, t + step], abs=1e-2)
