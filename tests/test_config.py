"""Settings: published keys, checked once, every mistake named."""

import json
import runpy
from dataclasses import asdict, fields

import pytest
from conftest import ROOT

from config import Config, ConfigError, config_text, load_config, parse_setting

PUBLISHED_KEYS = [
    "results_folder_name",
    "maximum_number_of_frames",
    "resx",
    "resy",
    "iters_num",
    "samples_batch",
    "optical_flow_coeff",
    "evaluate_every",
    "derivative_amount",
    "rgb_coeff",
    "data_folder",
    "rigidity_coeff",
    "uv_mapping_scale",
    "pretrain_mapping1",
    "pretrain_mapping2",
    "alpha_bootstrapping_factor",
    "alpha_flow_factor",
    "positional_encoding_num_alpha",
    "number_of_channels_atlas",
    "number_of_layers_atlas",
    "number_of_channels_alpha",
    "number_of_layers_alpha",
    "stop_bootstrapping_iteration",
    "number_of_channels_mapping1",
    "number_of_layers_mapping1",
    "number_of_channels_mapping2",
    "number_of_layers_mapping2",
    "gradient_loss_coeff",
    "use_gradient_loss",
    "sparsity_coeff",
    "positional_encoding_num_atlas",
    "use_positional_encoding_mapping1",
    "number_of_positional_encoding_mapping1",
    "use_positional_encoding_mapping2",
    "number_of_positional_encoding_mapping2",
    "pretrain_iter_number",
    "load_checkpoint",
    "checkpoint_path",
    "include_global_rigidity_loss",
    "global_rigidity_derivative_amount_fg",
    "global_rigidity_derivative_amount_bg",
    "global_rigidity_coeff_fg",
    "global_rigidity_coeff_bg",
    "stop_global_rigidity",
    "add_to_experiment_folder_name",
]


def written(path, **values):
    path.write_text(json.dumps({"data_folder": "data/swan"} | values))
    return path


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"grid_half_until": 2.0}, "grid_half_until must be at most 1, got 2.0"),
        ({"grid_quarter_until": 0.8}, "expected one after the other"),
        ({"grid_rate_atlas": 0.0}, "grid_rate_atlas must be above 0"),
        ({"grid_levels_mapping": []}, r"grid_levels_mapping must be a list of one or more pairs \[pixels, frames\]"),
        ({"grid_levels_mapping": [[16, 1], 8]}, "grid_levels_mapping must be a list"),
        ({"grid_levels_alpha": [[8, 1.5]]}, "grid_levels_alpha must be a list"),
        ({"grid_levels_alpha": [[2, 1], [8, 2]]}, r"expected nodes in every frame, \[pixels, 1\]"),
        ({"grid_decay_from": 1.0}, "expected below 1"),
        ({"grid_rate_end": 2.0}, "grid_rate_end must be at most 1"),
        ({"residual": True}, "set light to false"),
        ({"representation": "grid", "initialisation": "alignment"}, "grids always start from the alignment"),
        ({"representation": "voxels"}, "representation must be one of 'mlp', 'grid'"),
    ],
)
def test_settings_of_the_grids_that_make_no_sense_are_refused(tmp_path, settings, complaint):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"data_folder": "x"} | settings))
    with pytest.raises(ConfigError, match=complaint):
        load_config(path)


def test_the_shipped_config_holds_every_published_key_with_the_published_settings():
    values = json.loads((ROOT / "config" / "config.json").read_text())
    assert set(PUBLISHED_KEYS) <= values.keys()
    assert values.keys() == asdict(Config(data_folder="x")).keys()
    assert load_config(ROOT / "config" / "config.json") == Config(data_folder="data/blackswan")


def test_every_shipped_config_loads():
    for path in sorted((ROOT / "config").glob("*.json")):
        assert load_config(path).data_folder, path


def test_a_config_survives_writing_and_reading(tmp_path):
    config = Config(data_folder="data/swan", resx=None, rgb_coeff=7.0)
    (tmp_path / "config.json").write_text(config_text(config))
    assert load_config(tmp_path / "config.json") == config


def test_an_unknown_key_is_named_with_the_nearest_real_one(tmp_path):
    with pytest.raises(ConfigError, match=r"c\.json: unknown key 'rgb_coef'; did you mean 'rgb_coeff'\?"):
        load_config(written(tmp_path / "c.json", rgb_coef=1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("iters_num", "many", "iters_num must be a whole number, got 'many'"),
        ("iters_num", 1.5, "iters_num must be a whole number, got 1.5"),
        ("iters_num", True, "iters_num must be a whole number, got True"),
        ("iters_num", 0, "iters_num must be at least 1, got 0"),
        ("rgb_coeff", None, "rgb_coeff must be a number, got None"),
        ("rgb_coeff", -1, "rgb_coeff must be at least 0, got -1"),
        ("use_gradient_loss", 1, "use_gradient_loss must be true or false, got 1"),
        ("resx", "wide", "resx must be a whole number or null, got 'wide'"),
        ("sampling", "tile", "sampling must be one of 'tiles', 'published', got 'tile'"),
        ("uv_mapping_scale", 0, "uv_mapping_scale must be above 0, got 0"),
        ("derivative_amount", 4, "derivative_amount 4 does not fit into tiles of tile_size 4"),
        ("maximum_number_of_frames", 1, "maximum_number_of_frames must be at least 2, got 1"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=r"c\.json") as caught:
        load_config(written(tmp_path / "c.json", **{key: value}))
    assert message in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match="missing key data_folder"):
        load_config(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"resx": 3,}', "not valid JSON at line 1"), ("[1]", "expected a JSON object of settings, got list")],
)
def test_what_is_no_config_is_refused(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.json")


def test_infinite_numbers_are_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"data_folder": "x", "rgb_coeff": Infinity}')
    with pytest.raises(ConfigError, match="rgb_coeff must be a finite number"):
        load_config(tmp_path / "c.json")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_a_setting_of_an_older_config_is_taken_under_its_present_name(tmp_path):
    path = written(
        tmp_path / "c.json", representation="grid", residual=True, residual_coeff=7, initialisation="upright"
    )
    config = load_config(path)
    assert (config.light, config.light_coeff, config.initialisation) == (True, 7, "identity")


def test_an_older_name_beside_the_present_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="residual is the older name of light, and both are given"):
        load_config(written(tmp_path / "c.json", residual=True, light=False))


def test_changes_on_the_command_line_replace_the_files_settings_and_are_checked_alike(tmp_path):
    path = written(tmp_path / "c.json", rgb_coeff=1, resx=100)
    changes = dict(map(parse_setting, ["rgb_coeff=2.5", "resx=null", "add_to_experiment_folder_name=2024"]))
    config = load_config(path, changes)
    assert (config.rgb_coeff, config.resx, config.add_to_experiment_folder_name) == (2.5, None, "2024")
    with pytest.raises(ConfigError, match="--set: unknown key 'rgb_coef'; did you mean 'rgb_coeff'"):
        load_config(path, {"rgb_coef": 1})
    with pytest.raises(ConfigError, match="--set: resx must be a whole number or null, got 'wide'"):
        load_config(path, {"resx": "wide"})


@pytest.mark.parametrize("text", ["rgb_coeff", "=3"])
def test_a_change_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_setting(text)


def test_every_setting_says_what_it_means():
    for each in fields(Config):
        assert each.metadata["meaning"].endswith("."), each.name


def test_the_page_of_settings_is_the_one_that_the_code_writes():
    page = runpy.run_path(str(ROOT / "docs" / "write_config_page.py"))
    assert (ROOT / "docs" / "config.md").read_text() == page["page_text"](), "run python docs/write_config_page.py"
