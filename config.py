"""A run's settings: one frozen dataclass, read from JSON and checked once. Standard library only.

Meaning and limits of a setting stand beside it, in the metadata of its field. `docs/config.md` is written from them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from command_line import UserError

Levels = tuple[tuple[int, int], ...]  # (pixels, frames) between the nodes of each grid; the grids are added up
Factors = tuple[float, ...]  # one for each layer of a video

MOST_OBJECTS = 3  # the square that all atlases share has no room for more
LARGEST = 2**53  # above it whole numbers lose digits on their way through JSON
EARLIER_KEYS = {"residual": "light", "residual_coeff": "light_coeff"}  # names of settings in older configs
EARLIER_VALUES = {("initialisation", "upright"): "identity"}  # and of their values


class ConfigError(UserError):
    """A config that cannot be used; the message names the file and the key."""


def setting(
    meaning: str,
    default: Any = MISSING,
    *,
    at_least: float | None = 0,
    above: float | None = None,
    at_most: float = LARGEST,
    choices: tuple[str, ...] = (),
) -> Any:
    """Describe a field of `Config`: its meaning, its default, and what its values may be.

    at_least, above, at_most: limits of a number; above excludes the limit itself. choices: the only texts allowed.
    """
    limits = {"at_least": None if above is not None else at_least, "above": above, "at_most": at_most}
    return field(default=default, metadata={"meaning": meaning, "choices": choices} | limits)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. JSON keys keep their published names, so published configs load unchanged."""

    # data
    data_folder: str = setting("Folder of the frames; NAME_flow and NAME_maskrcnn lie beside it.")
    maximum_number_of_frames: int = setting(
        "Largest number of frames that are used: the first ones of a longer clip.", 70, at_least=2
    )
    objects: int = setting(
        "Number of foreground objects, the front one first. Several have masks in NAME_maskrcnn_1, _2, ... each.",
        1,
        at_least=1,
        at_most=MOST_OBJECTS,
    )
    resx: int | None = setting(
        "Working width, pixels. null keeps the aspect, or with resy null too the size of the frames.", 768, at_least=8
    )
    resy: int | None = setting("Working height, pixels; null like resx.", 432, at_least=8)
    fps: float | None = setting(
        "Frames per second of the videos that are written; null: the clip's own (NAME.json), else 10.", None, above=0
    )

    # the run
    results_folder_name: str = setting("Folder in which every run gets a folder of its own.", "results")
    add_to_experiment_folder_name: str = setting("Added to the name of the run's folder.", "_")
    iters_num: int = setting("Number of iterations.", 400_000, at_least=1)
    window_frames: int = setting(
        "representation grid: clips of more than 1.5 times so many frames are trained in windows of about so many "
        "frames, whose atlases are parts of the same ones.",
        100,
        at_least=24,
    )
    look_frames: int = setting(
        "representation grid: frames from look to look. The colours of atlases change over time, because one picture "
        "cannot show legs that cross, an animal that turns, or water. 0: no looks.",
        8,
        at_least=0,
    )
    time_budget_s: float | None = setting(
        "Stop after so many seconds of loading and training, and evaluate; null: stop after iters_num.", None, above=0
    )
    evaluate_every: int = setting("Iterations between evaluations.", 10_000, at_least=1)
    full_evaluation: bool = setting(
        "Evaluations write all published videos; false: only reconstruction, alpha, residuals and edit.", True
    )
    checkpoint_every: int = setting("Iterations between checkpoints.", 250, at_least=1)
    log_every: int = setting("Iterations between lines of the log.", 50, at_least=1)
    load_checkpoint: bool = setting(
        "Continue from checkpoint_path: weights, optimizer, iteration number and pins.", False
    )
    checkpoint_path: str = setting("Checkpoint to continue from, if load_checkpoint is true.", "")
    learning_rate: float = setting("Networks: learning rate of the mappings.", 1e-4, above=0)
    learning_rate_appearance: float | None = setting(
        "Networks: learning rate of atlas and opacity; null: learning_rate.", None, above=0
    )
    learning_rate_end: float = setting(
        "Networks: factor of both learning rates at the end. They fall over the last 60 % of the run; 1: constant, "
        "as published. With a time budget they follow the clock, so curves are then not repeatable to the digit.",
        1.0,
        above=0,
    )
    seed: int = setting("Same config and seed, same curve on the same machine (on the CPU).", 0)
    precision: str = setting(
        '"bfloat16" runs the hidden layers of atlas and opacity in bfloat16, never coordinates: twice as fast where '
        "the processor supports it, slower where it does not.",
        "float32",
        choices=("float32", "bfloat16"),
    )

    # samples
    samples_batch: int = setting("Networks: pixels per iteration.", 10_000, at_least=1)
    sampling: str = setting(
        '"tiles": squares of tile_size pixels that are each other\'s neighbours; the same expected loss as '
        '"published" (independent pixels, each with neighbours of its own) at about a sixth of the time.',
        "tiles",
        choices=("tiles", "published"),
    )
    tile_size: int = setting("Side of a tile, pixels.", 4, at_least=2)

    # the grid representation
    representation: str = setting(
        '"mlp": the published networks. "grid": explicit grids from a closed-form start (DESIGN.md).',
        "mlp",
        choices=("mlp", "grid"),
    )
    light: bool = setting(
        "Grids: learn a smooth factor of light over (x, y, t), close to 1. Older name: residual.", False
    )
    light_coeff: float = setting(
        "Grids: weight of the squared logarithm of that factor. Older name: residual_coeff.", 100.0
    )
    unlit_coeff: float = setting(
        "Grids: weight of the colour and gradient terms without light, against 1 with it. It lets light explain only "
        "what the layers cannot.",
        1.0,
    )
    strokes_folder: str = setting(
        "Folder with strokes that say what is the object on some frames (train.py --strokes); empty: none.", ""
    )
    mask_quality: str = setting(
        'Grids: "rough" masks are refined by motion and colour before training, "exact" ones are kept (an all-black '
        'one says that the object is hidden in that frame). "auto" refines masks that a method of ours found, as '
        "NAME_maskrcnn.json tells, keeps masks that you brought (--masks, --method import), and keeps others unless "
        "they are surely rough. Training prints what it decided.",
        "auto",
        choices=("auto", "rough", "exact"),
    )
    prior_coeff: float = setting(
        "Grids: weight of the cross-entropy between opacity and the refined masks. At the start of a run the weight is "
        "alpha_bootstrapping_factor, if that is larger, and falls to this value.",
        4000.0,
    )
    grid_levels_mapping: Levels = setting(
        "Grids: [pixels, frames] between the nodes of each grid of displacements; the grids are added up.",
        ((96, 8), (32, 2), (8, 1)),
    )
    grid_levels_alpha: Levels = setting(
        "Grids: the same for opacity. The last grid has nodes in every frame; it is compared with the masks.",
        ((8, 1), (2, 1)),
    )
    grid_light_px: int = setting("Grids: pixels between the nodes of light, which are in every frame.", 16, at_least=1)
    grid_quarter_until: float = setting(
        "Grids: share of the run that is done at a quarter of the resolution.", 0.25, at_most=1
    )
    grid_half_until: float = setting("Grids: share of the run after which the full resolution begins.", 0.7, at_most=1)
    grid_quarter_pairs: int = setting(
        "Grids: pairs of neighbouring frames in a batch at a quarter of the resolution. More points than fit into the "
        "processor's cache cost more time each.",
        6,
        at_least=1,
    )
    grid_half_pairs: int = setting(
        "Grids: pairs of neighbouring frames in a batch at half of the resolution.", 4, at_least=1
    )
    grid_full_pairs: int = setting(
        "Grids: pairs of neighbouring frames in a batch at the full resolution.", 1, at_least=1
    )
    cuda_graphs: bool = setting(
        "Grids: on a CUDA GPU, record each step as a graph and replay it, which is many times faster.", True
    )
    grid_decay_from: float = setting(
        "Grids: share of the run after which the learning rates fall, below 1.", 0.4, at_most=1
    )
    grid_rate_end: float = setting(
        "Grids: factor of the learning rates at the end of the run.", 0.05, above=0, at_most=1
    )
    grid_rate_mapping: float = setting("Grids: learning rate of displacements, in texels.", 0.1, above=0)
    grid_rate_alpha: float = setting("Grids: learning rate of opacity, in the logarithm of the odds.", 0.05, above=0)
    grid_rate_atlas: float = setting("Grids: learning rate of the atlases, for colours in [0, 1].", 0.004, above=0)
    grid_rate_light: float = setting("Grids: learning rate of light, in the logarithm of its factor.", 0.01, above=0)

    # networks
    number_of_channels_mapping1: int = setting("Width of the foreground mapping.", 256, at_least=1)
    number_of_layers_mapping1: int = setting("Layers of the foreground mapping, with the output.", 6, at_least=2)
    use_positional_encoding_mapping1: bool = setting("Whether the foreground mapping encodes its input.", False)
    number_of_positional_encoding_mapping1: int = setting("Frequencies of the foreground mapping's encoding.", 4)
    number_of_channels_mapping2: int = setting("Width of the background mapping.", 256, at_least=1)
    number_of_layers_mapping2: int = setting("Layers of the background mapping, with the output.", 4, at_least=2)
    use_positional_encoding_mapping2: bool = setting("Whether the background mapping encodes its input.", False)
    number_of_positional_encoding_mapping2: int = setting("Frequencies of the background mapping's encoding.", 2)
    number_of_channels_atlas: int = setting("Width of the atlas network.", 256, at_least=1)
    number_of_layers_atlas: int = setting("Layers of the atlas network, with the output.", 8, at_least=2)
    positional_encoding_num_atlas: int = setting("Frequencies of the atlas network's encoding.", 10)
    number_of_channels_alpha: int = setting("Width of the opacity network.", 256, at_least=1)
    number_of_layers_alpha: int = setting("Layers of the opacity network, with the output.", 8, at_least=2)
    positional_encoding_num_alpha: int = setting("Frequencies of the opacity network's encoding.", 5)
    alpha_range: str = setting(
        '"full": rendered opacity reaches 0 and 1. "published": [0.001, 0.991] as in training, to compare with the '
        "published code.",
        "full",
        choices=("full", "published"),
    )

    # pre-training of the mappings
    pretrain_mapping1: bool = setting("Networks: fit the foreground mapping to its start before training.", True)
    pretrain_mapping2: bool = setting("Networks: fit the background mapping to its start before training.", True)
    pretrain_iter_number: int = setting("Networks: rounds of pre-training; each takes one batch of every frame.", 100)
    uv_mapping_scale: float = setting(
        "Networks: scale of the published start: (u, v) is this times (x, y).", 0.8, above=0
    )
    initialisation: str = setting(
        'Networks: "identity" as published, or "alignment": the mappings start as the layers move. Older name of '
        '"identity": "upright".',
        "identity",
        choices=("identity", "alignment"),
    )

    # losses
    rgb_coeff: float = setting("Weight of the colour term.", 5000.0)
    use_gradient_loss: bool = setting("Whether the gradient term (Eq. 7) is used.", True)
    gradient_loss_coeff: float = setting("Weight of the gradient term.", 1000.0)
    rigidity_coeff: float = setting("Weight of rigidity (Eq. 9); multiplies the global rigidity too.", 1.0)
    layer_rigidity: Factors = setting(
        "Factors of rigidity_coeff for each layer, the front object first and the background last; layers without one "
        "have 1. A rigid layer of grids, which training does not bend, may bend with a factor below 1.",
        (),
    )
    derivative_amount: int = setting("Networks: step of the derivatives in Eq. 9, pixels.", 1, at_least=1)
    include_global_rigidity_loss: bool = setting("Networks: whether global rigidity is used.", True)
    global_rigidity_derivative_amount_fg: int = setting(
        "Networks: step of the foreground's global rigidity, pixels.", 100, at_least=1
    )
    global_rigidity_derivative_amount_bg: int = setting(
        "Networks: step of the background's global rigidity, pixels.", 100, at_least=1
    )
    global_rigidity_coeff_fg: float = setting("Networks: weight of the foreground's global rigidity.", 5.0)
    global_rigidity_coeff_bg: float = setting("Networks: weight of the background's global rigidity.", 50.0)
    stop_global_rigidity: int = setting("Networks: last iteration of the global rigidity.", 5_000)
    optical_flow_coeff: float = setting("Weight of the flow term (Eq. 11).", 5.0)
    long_flow_coeff: float = setting(
        "Grids: weight of the flow term over 2, 4 and 8 frames, which keeps mappings from drifting; 0: none.", 20.0
    )
    alpha_flow_factor: float = setting("Weight of the change of opacity along the flow (Eq. 12).", 49.0)
    sparsity_coeff: float = setting("Weight of the sparsity term.", 1000.0)
    alpha_bootstrapping_factor: float = setting("Weight of opacity's cross-entropy with the rough masks.", 2000.0)
    stop_bootstrapping_iteration: int = setting(
        "Networks: last iteration of the cross-entropy with the rough masks.", 10_000
    )


def load_config(path: Path, changes: Mapping[str, object] | None = None) -> Config:
    """Read and check a config file. Raises ConfigError naming the file, the key, and the nearest real key.

    changes: settings by key that replace those of the file, as `train.py --set` gives them; checked alike.
    """
    values = check_settings(read_settings(path), str(path)) | check_settings(changes or {}, "--set")
    if missing := [f.name for f in fields(Config) if f.default is MISSING and f.name not in values]:
        raise ConfigError(f"{path}: missing key {', '.join(missing)}")
    config = Config(**values)
    if problem := find_conflict(config):
        raise ConfigError(f"{path}: {problem}")
    return config


def rigidity_weight(config: Config, layer: int) -> float:
    """Return the weight of the rigidity of a layer, by its index."""
    return config.rigidity_coeff * rigidity_factor(config, layer)


def rigidity_factor(config: Config, layer: int) -> float:
    """Return the factor by which the user makes a layer stiffer (above 1) or softer (below 1), by its index."""
    return config.layer_rigidity[layer] if layer < len(config.layer_rigidity) else 1.0


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a config file. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a config JSON such as config/config.json") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the path of a config JSON such as config/config.json") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; expected a config in JSON") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object of settings, got {type(values).__name__}")
    return values


def check_settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings under their present names, each checked. Raises ConfigError; `where` says where they come from."""
    known, checked = {each.name: each for each in fields(Config)}, {}
    for given, value in values.items():
        key = EARLIER_KEYS.get(given, given)
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.5)
            raise ConfigError(f"{where}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if key != given and key in values:
            raise ConfigError(f"{where}: {given} is the older name of {key}, and both are given; leave {given} out")
        if isinstance(value, str):
            value = EARLIER_VALUES.get((key, value), value)
        if problem := find_value_problem(known[key], value):
            raise ConfigError(f"{where}: {given} {problem}, got {value!r}")
        if known[key].type == Levels:
            value = tuple(map(tuple, value))
        checked[key] = tuple(value) if known[key].type == Factors else value
    return checked


def parse_setting(text: str) -> tuple[str, object]:
    """A flag's key=value as a key and a value: JSON where the value is JSON, else text. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: expected key=value such as rgb_coeff=1000")
    is_text = any(each.name == key and each.type is str for each in fields(Config))
    if is_text and not value.startswith('"'):  # a folder may be named 2024, which JSON takes for a number
        return key, value
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def find_conflict(config: Config) -> str | None:
    """What is wrong with settings that are right one by one but do not go together; None if nothing is."""
    if config.sampling == "tiles" and config.derivative_amount >= config.tile_size:
        return (
            f"derivative_amount {config.derivative_amount} does not fit into tiles of tile_size {config.tile_size}; "
            "raise tile_size or set sampling to 'published'"
        )
    if config.grid_quarter_until > config.grid_half_until:
        return (
            f"grid_quarter_until {config.grid_quarter_until} and grid_half_until {config.grid_half_until} are "
            "shares of the run, expected one after the other"
        )
    if config.grid_decay_from >= 1:
        return f"grid_decay_from {config.grid_decay_from} is a share of the run, expected below 1"
    if config.grid_levels_alpha[-1][1] != 1:
        return (
            f"the last of grid_levels_alpha, {list(config.grid_levels_alpha[-1])}, is compared with the masks; "
            "expected nodes in every frame, [pixels, 1]"
        )
    if config.representation == "mlp" and config.light:
        return "light is learned by representation 'grid' alone; set light to false"
    if config.initialisation == "alignment" and (config.representation == "grid" or not config.pretrain_iter_number):
        return (
            "initialisation 'alignment' is for representation 'mlp' with pretrain_iter_number above 0 "
            "(grids always start from the alignment)"
        )
    return None


def find_value_problem(described: Field, value: object) -> str | None:
    """What is wrong with the value of one setting; None if nothing is."""
    if described.type == Levels:
        is_right = is_list_of_levels(value)
        return None if is_right else "must be a list of one or more pairs [pixels, frames] of whole numbers from 1 on"
    if described.type == Factors:
        return None if is_list_of_factors(value) else "must be a list of numbers of at least 0, one for each layer"
    accepted = field_types(described)
    if float in accepted:
        accepted += (int,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        return "must be " + type_name(described)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    limits = described.metadata
    if limits["choices"] and value not in limits["choices"]:
        return "must be one of " + ", ".join(map(repr, limits["choices"]))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value > limits["at_most"] or abs(value) > LARGEST:
        return f"must be at most {limits['at_most']}"
    if limits["above"] is not None and value <= limits["above"]:
        return f"must be above {limits['above']}"
    if limits["at_least"] is not None and value < limits["at_least"]:
        return f"must be at least {limits['at_least']}"
    return None


def is_list_of_levels(value: object) -> bool:
    """True for [[pixels, frames], ...] as JSON has them."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(level, list) and len(level) == 2 for level in value)
        and all(type(each) is int and 1 <= each <= LARGEST for level in value for each in level)
    )


def is_list_of_factors(value: object) -> bool:
    """True for a list of numbers of at least 0."""
    return isinstance(value, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= LARGEST for each in value
    )


def field_types(described: Field) -> tuple[type, ...]:
    """The types that values of a setting may have."""
    kind = described.type
    return tuple(get_args(kind)) if isinstance(kind, UnionType) else (kind,)  # type: ignore[return-value]


def type_name(described: Field) -> str:
    """The type of a setting as users know it from JSON."""
    names = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false", type(None): "null"}
    return " or ".join(names[kind] for kind in field_types(described))


def config_text(config: Config) -> str:
    """The config as JSON, every key present, one a line: what a run's folder keeps."""
    lines = (f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(config).items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
