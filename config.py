"""A run's settings: one frozen dataclass, read from JSON and checked once. Standard library only."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import get_args

from command_line import UserError

Levels = tuple[tuple[int, int], ...]  # (pixels, frames) between the nodes of grids that are added up


class ConfigError(UserError):
    """A config file that cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. JSON keys keep their published names, so published configs load unchanged."""

    # data
    data_folder: str  # the frames' folder; NAME_flow and NAME_maskrcnn lie beside it
    maximum_number_of_frames: int = 70
    objects: int = 1  # foreground objects, the front one first; several have masks in NAME_maskrcnn_1, _2, ... each
    resx: int | None = 768  # working width, pixels; null keeps the aspect (or, with resy null too, the native size)
    resy: int | None = 432  # working height, pixels
    fps: float | None = None  # of the videos written; null: the clip's own (NAME.json), else 10

    # the run
    results_folder_name: str = "results"
    add_to_experiment_folder_name: str = "_"
    iters_num: int = 400_000
    time_budget_s: float | None = None  # stop after so many seconds of loading and training; null: after iters_num
    evaluate_every: int = 10_000  # iterations between evaluations
    checkpoint_every: int = 250  # iterations between checkpoints
    log_every: int = 50  # iterations between lines of the log
    load_checkpoint: bool = False  # start from the weights in checkpoint_path
    checkpoint_path: str = ""
    learning_rate: float = 1e-4
    learning_rate_appearance: float | None = None  # of atlas and alpha; null: learning_rate
    learning_rate_end: float = 1.0  # share of both that is left at the end of the run; 1: constant, as published
    seed: int = 0
    precision: str = "float32"  # or "bfloat16": hidden layers of atlas and alpha only, never coordinates

    # samples
    samples_batch: int = 10_000  # pixels per iteration
    sampling: str = "tiles"  # or "published": independent pixels, each with neighbours of its own
    tile_size: int = 4  # side of a tile, pixels

    # the grid representation
    representation: str = "mlp"  # the published networks, or "grid": explicit grids from a closed-form start
    residual: bool = False  # grid: a smooth factor of light over (x, y, t), close to 1
    residual_coeff: float = 100.0  # of the squared logarithm of that factor
    unlit_coeff: float = 1.0  # of colour and gradient terms without light: it explains only what layers cannot
    mask_quality: str = "auto"  # grid: "rough" masks are mended, "exact" ones kept; "auto": found ones are rough
    prior_coeff: float = 4000.0  # of opacity's cross-entropy with the mended masks; below it the prior never fades
    grid_levels_mapping: Levels = ((96, 8), (32, 2), (16, 1))  # nodes of displacements lie so many pixels, frames apart
    grid_levels_alpha: Levels = ((8, 1), (2, 1))  # nodes of opacity; the last ones, in every frame, meet the masks
    grid_light_px: int = 16  # spacing of the nodes of light, in every frame
    grid_quarter_until: float = 0.25  # share of the run at a quarter of the resolution
    grid_half_until: float = 0.7  # and at half of it
    # Pairs of neighbouring frames in a batch; more points than fit the cache cost more each.
    grid_quarter_pairs: int = 6
    grid_half_pairs: int = 4
    grid_full_pairs: int = 1
    grid_decay_from: float = 0.4  # share of the run from which the learning rates fall
    grid_rate_end: float = 0.05  # to this share of them
    grid_rate_mapping: float = 0.03  # learning rates: texels
    grid_rate_alpha: float = 0.05  # logarithm of the odds
    grid_rate_atlas: float = 0.004  # colour
    grid_rate_light: float = 0.01  # logarithm of the factor

    # networks
    number_of_channels_mapping1: int = 256
    number_of_layers_mapping1: int = 6
    use_positional_encoding_mapping1: bool = False
    number_of_positional_encoding_mapping1: int = 4
    number_of_channels_mapping2: int = 256
    number_of_layers_mapping2: int = 4
    use_positional_encoding_mapping2: bool = False
    number_of_positional_encoding_mapping2: int = 2
    number_of_channels_atlas: int = 256
    number_of_layers_atlas: int = 8
    positional_encoding_num_atlas: int = 10
    number_of_channels_alpha: int = 256
    number_of_layers_alpha: int = 8
    positional_encoding_num_alpha: int = 5
    alpha_range: str = "full"  # of rendered opacity; "published" is [0.001, 0.991], as in training

    # pre-training of the mappings
    pretrain_mapping1: bool = True
    pretrain_mapping2: bool = True
    pretrain_iter_number: int = 100  # rounds of one batch per frame
    uv_mapping_scale: float = 0.8  # (u, v) start as this times (x, y)
    initialisation: str = "upright"  # as published; or "alignment": the mappings start as the layers move

    # losses
    rgb_coeff: float = 5000.0
    use_gradient_loss: bool = True
    gradient_loss_coeff: float = 1000.0  # Eq. 7
    rigidity_coeff: float = 1.0  # Eq. 9; multiplies the global rigidity too
    derivative_amount: int = 1  # step of Eq. 9, pixels
    include_global_rigidity_loss: bool = True
    global_rigidity_derivative_amount_fg: int = 100  # pixels
    global_rigidity_derivative_amount_bg: int = 100
    global_rigidity_coeff_fg: float = 5.0
    global_rigidity_coeff_bg: float = 50.0
    stop_global_rigidity: int = 5_000  # last iteration of the global rigidity
    optical_flow_coeff: float = 5.0  # Eq. 11
    alpha_flow_factor: float = 49.0  # Eq. 12
    sparsity_coeff: float = 1000.0
    alpha_bootstrapping_factor: float = 2000.0
    stop_bootstrapping_iteration: int = 10_000  # last iteration in which alpha follows the rough masks


CHOICES = {
    "sampling": ("tiles", "published"),
    "representation": ("mlp", "grid"),
    "initialisation": ("upright", "alignment"),
    "mask_quality": ("auto", "rough", "exact"),
    "precision": ("float32", "bfloat16"),
    "alpha_range": ("full", "published"),
}
AT_LEAST = {
    "maximum_number_of_frames": 2,
    "objects": 1,
    "resx": 8,
    "resy": 8,
    "tile_size": 2,
    "number_of_layers_mapping1": 2,
    "number_of_layers_mapping2": 2,
    "number_of_layers_atlas": 2,
    "number_of_layers_alpha": 2,
    "iters_num": 1,
    "grid_light_px": 1,
    "grid_quarter_pairs": 1,
    "grid_half_pairs": 1,
    "grid_full_pairs": 1,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "samples_batch": 1,
    "derivative_amount": 1,
    "global_rigidity_derivative_amount_fg": 1,
    "global_rigidity_derivative_amount_bg": 1,
}
MOST_OBJECTS = 3  # for more the square that all atlases share has no room
LARGEST = 2**53  # above it whole numbers lose digits on their way through JSON
ABOVE_ZERO = (
    "fps",
    "uv_mapping_scale",
    "learning_rate",
    "learning_rate_appearance",
    "learning_rate_end",
    "time_budget_s",
    "grid_rate_mapping",
    "grid_rate_alpha",
    "grid_rate_atlas",
    "grid_rate_light",
    "grid_rate_end",
)
LEVELS = "must be a list of one or more pairs [pixels, frames] of whole numbers from 1 on"


def load_config(path: Path) -> Config:
    """Read and check a config file. Raises ConfigError naming the file, the key, and the nearest real key."""
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
    known = {field.name: field.type for field in fields(Config)}
    for key, value in values.items():
        if key not in known:
            close = get_close_matches(key, known, n=1, cutoff=0.5)
            raise ConfigError(f"{path}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if problem := find_value_problem(key, value, known[key]):
            raise ConfigError(f"{path}: {key} {problem}, got {value!r}")
        if known[key] == Levels:
            values[key] = tuple(map(tuple, value))
    if missing := [f.name for f in fields(Config) if f.default is MISSING and f.name not in values]:
        raise ConfigError(f"{path}: missing key {', '.join(missing)}")
    config = Config(**values)
    if problem := find_conflict(config):
        raise ConfigError(f"{path}: {problem}")
    return config


def find_conflict(config: Config) -> str | None:
    """What is wrong with values that are right by themselves but do not go together, or None."""
    if config.sampling == "tiles" and config.derivative_amount >= config.tile_size:
        return (
            f"derivative_amount {config.derivative_amount} does not fit into tiles of tile_size {config.tile_size}; "
            "raise tile_size or set sampling to 'published'"
        )
    if not config.grid_quarter_until <= config.grid_half_until <= 1:
        return (
            f"grid_quarter_until {config.grid_quarter_until} and grid_half_until {config.grid_half_until} are "
            "shares of the run, expected one after the other and at most 1"
        )
    if config.grid_decay_from >= 1:
        return f"grid_decay_from {config.grid_decay_from} is a share of the run, expected below 1"
    if config.grid_rate_end > 1:
        return f"grid_rate_end {config.grid_rate_end} is the share of the rates that is left, expected at most 1"
    if config.grid_levels_alpha[-1][1] != 1:
        return (
            f"the last of grid_levels_alpha, {list(config.grid_levels_alpha[-1])}, is compared with the masks; "
            "expected nodes in every frame, [pixels, 1]"
        )
    if config.representation == "mlp" and config.residual:
        return "residual is learned by representation 'grid' alone; set residual to false"
    if config.initialisation == "alignment" and (config.representation == "grid" or not config.pretrain_iter_number):
        return (
            "initialisation 'alignment' is for representation 'mlp' with pretrain_iter_number above 0 "
            "(grids always start from the alignment)"
        )
    return None


def find_value_problem(key: str, value: object, expected: type | UnionType) -> str | None:
    """What is wrong with one value, or None."""
    if expected == Levels:
        return None if are_levels(value) else LEVELS
    accepted = tuple(get_args(expected)) or (expected,)
    if float in accepted:
        accepted += (int,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        return "must be " + type_name(expected)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if key in CHOICES and value not in CHOICES[key]:
        return "must be one of " + ", ".join(map(repr, CHOICES[key]))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > LARGEST:
        return f"must be at most {LARGEST}"
    if key in ABOVE_ZERO and value <= 0:
        return "must be above 0"
    if value < AT_LEAST.get(key, 0):
        return f"must be at least {AT_LEAST.get(key, 0)}"
    if key == "objects" and value > MOST_OBJECTS:
        return f"must be at most {MOST_OBJECTS}"
    if key.startswith("number_of_channels") and value == 0:
        return "must be at least 1"
    return None


def are_levels(value: object) -> bool:
    """True for [[pixels, frames], ...] as JSON has them."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(level, list) and len(level) == 2 for level in value)
        and all(type(each) is int and 1 <= each <= LARGEST for level in value for each in level)
    )


def type_name(expected: type | UnionType) -> str:
    """A type as users know it from JSON."""
    names = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false", type(None): "null"}
    return " or ".join(names[part] for part in (get_args(expected) or (expected,)))


def config_text(config: Config) -> str:
    """The config as JSON, every key present, one a line: what a run's folder keeps."""
    lines = (f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(config).items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
