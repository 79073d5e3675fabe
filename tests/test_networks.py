"""The networks, the model that contains them, and its checkpoints."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from command_line import UserError
from implicit_neural_networks import (
    IMLP,
    AtlasModel,
    Layers,
    Sample,
    positional_encoding,
    visibility,
)
from media.checkpoints import read_checkpoint, write_checkpoint


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path / "swan", tmp_path)


def points(count: int = 20) -> torch.Tensor:
    """Return random points (count, 3) in [-1, 1]^3."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_encoding_runs_through_frequencies_then_sine_and_cosine_then_coordinates():
    encoded = positional_encoding(torch.tensor([[0.5, 0.25]]), torch.pi * torch.tensor([1.0, 2.0]))
    half = 0.5**0.5
    torch.testing.assert_close(encoded, torch.tensor([[1, half, 0, half, 0, 1, -1, 0]]), atol=1e-6, rtol=0)


def test_no_gradient_reaches_the_input_through_a_skip():
    network = IMLP(2, 1, 8, 3, frequencies=2, skips=(2,))
    with torch.no_grad():
        network.hidden[0].weight.zero_()  # only the skip can pass gradients now
    uv = torch.rand(5, 2, requires_grad=True)
    network(uv).sum().backward()
    assert uv.grad.abs().max() == 0
    assert network.hidden[2].weight.grad[:, 8:].abs().max() > 0


def test_layers_cover_a_pixel_front_to_back_and_sum_to_one():
    alpha = torch.tensor([[[0.5]], [[0.25]]])
    torch.testing.assert_close(visibility(alpha).flatten(), torch.tensor([0.5, 0.125, 0.375]))


def test_an_opaque_front_object_hides_the_second_and_the_background():
    colors = torch.eye(3)[:, None]
    sample = Sample(torch.zeros(3, 1, 2), torch.tensor([[[1.0]], [[1.0]]]), colors)
    torch.testing.assert_close(sample.rgb, torch.tensor([[1.0, 0.0, 0.0]]))


def test_every_layer_has_a_square_of_its_own_in_the_shared_atlas():
    centers = [layer.atlas_center for layer in Layers.for_objects(3)]
    assert centers[0] == (0.5, 0.5)
    assert centers[-1] == (-0.5, -0.5)
    assert len(set(centers)) == 4


def test_two_objects_have_networks_of_their_own(config):
    model = AtlasModel(replace(config, objects=2))
    sample = model(points())
    assert sample.uv.shape == (3, 20, 2)
    assert sample.alpha.shape == (2, 20, 1)
    assert sample.rgb.shape == (20, 3)
    assert list(model.networks_by_name()) == [
        "model_F_mapping1",
        "model_F_mapping2",
        "model_F_mapping3",
        "model_F_alpha",
        "model_F_alpha2",
        "F_atlas",
    ]


def test_opacity_is_bounded_in_training_and_full_when_rendering(config):
    model = AtlasModel(config)
    with torch.no_grad():
        model.alphas[0].hidden[-1].bias.fill_(50.0)
        assert model.alpha(points()).max().item() == pytest.approx(0.991)
        assert model.alpha(points(), full_range=True).min().item() == 1.0
        model.alphas[0].hidden[-1].bias.fill_(-50.0)
        assert model.alpha(points()).min().item() == pytest.approx(0.001)
        assert model.alpha(points(), full_range=True).max().item() == 0.0


def test_low_precision_stays_close_and_leaves_coordinates_alone(config):
    torch.manual_seed(0)
    exact = AtlasModel(config)
    low_precision = AtlasModel(replace(config, precision="bfloat16"))
    low_precision.load_state_dict(exact.state_dict())
    expected, sample = exact(points()), low_precision(points())
    torch.testing.assert_close(sample.uv, expected.uv, rtol=0, atol=0)
    torch.testing.assert_close(sample.rgb, expected.rgb, rtol=0, atol=0.02)
    assert sample.rgb.dtype == torch.float32


def test_a_saved_model_renders_the_same_pixels(config, tmp_path):
    model, other = AtlasModel(config), AtlasModel(config)
    write_checkpoint(tmp_path / "checkpoint", model.checkpoint())
    other.load_checkpoint(read_checkpoint(tmp_path / "checkpoint"), tmp_path / "checkpoint")
    torch.testing.assert_close(model(points()).rgb, other(points()).rgb, rtol=0, atol=0)


def test_a_checkpoint_of_other_sizes_is_named(config, tmp_path):
    checkpoint = AtlasModel(config).checkpoint()
    wider = AtlasModel(replace(config, number_of_channels_atlas=24))
    with pytest.raises(UserError, match=r"checkpoint: F_atlas hidden\.0\.weight is \(16, 40\), the config asks for"):
        wider.load_checkpoint(checkpoint, tmp_path / "checkpoint")
    deeper = AtlasModel(replace(config, number_of_layers_alpha=5))
    with pytest.raises(UserError, match="model_F_alpha has 3 layers, the config asks for 5"):
        deeper.load_checkpoint(checkpoint, tmp_path / "checkpoint")


def test_a_file_that_is_no_checkpoint_is_refused(config, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="not a checkpoint, or cut short"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds list"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="has no model_F_mapping1_state_dict"):
        AtlasModel(config).load_checkpoint({}, path)


def test_a_truncated_checkpoint_is_refused(config, tmp_path):
    path = tmp_path / "checkpoint"
    write_checkpoint(path, AtlasModel(config).checkpoint())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="not a checkpoint, or cut short"):
        read_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class CodeRunner:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"object": CodeRunner()}, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint")
