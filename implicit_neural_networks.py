"""The networks: a positional-encoded MLP, and the model that owns the mappings, the opacities and the atlas.

Layers are a list, front to back: foreground objects first, the background last. Sizes come from the config, and this
is the only place where a network is built."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from command_line import UserError
from config import Config
from media import write_atomically
from unwrap_utils import frame_points, normalize, uv_scale_px

CORRUPT = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, OSError, UnpicklingError)
ATLAS_SKIPS = (4, 7)  # layers of the atlas that see the encoded input again, counting from 0
CHECKPOINT_FORMAT = 1  # raise it when older code can no longer read what is written; published checkpoints have none
ALPHA_SCALE, ALPHA_FLOOR = 0.99, 0.001  # published range of opacity: its cross-entropy stays finite
CHUNK = {"cpu": 8_192, "cuda": 200_000}  # points evaluated at once: on a CPU few enough for its cache, half the time


def positional_encoding(points: Tensor, frequencies: Tensor) -> Tensor:
    """(N, D) -> (N, 2 * D * K): for each frequency the sines of all coordinates, then their cosines."""
    angles = points[:, None, :] * frequencies[:, None]
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class IMLP(nn.Module):
    """Fully connected, ReLU between layers, tanh at the end; `layers` counts the output layer.

    frequencies: of the positional encoding, 0 for none. With low_precision the hidden layers run in bfloat16; the
    first and the last layer never do, since they carry coordinates and results.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, layers: int, frequencies: int = 0, skips=()):
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(frequencies), persistent=False)
        encoded = 2 * inputs * frequencies or inputs
        self.skips = {index for index in skips if index < layers}
        widths = [encoded] + [channels + encoded * (index in self.skips) for index in range(1, layers)]
        sizes = zip(widths, [channels] * (layers - 1) + [outputs], strict=True)
        self.hidden = nn.ModuleList(nn.Linear(width_in, width_out) for width_in, width_out in sizes)
        self.low_precision = False

    def forward(self, points: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs) in (-1, 1)."""
        x = positional_encoding(points, self.frequencies) if len(self.frequencies) else points
        # Published behaviour, kept because it changes training: no gradient reaches (u, v) through a skip.
        skipped = x.detach()
        x = self.hidden[0](x)
        with torch.autocast(points.device.type, torch.bfloat16, enabled=self.low_precision):
            for index, layer in enumerate(self.hidden[1:-1], start=1):
                x = layer(self.append_skip(x.relu(), skipped, index))
        last = len(self.hidden) - 1
        return torch.tanh(self.hidden[last](self.append_skip(x.relu().to(points.dtype), skipped, last)))

    def append_skip(self, x: Tensor, skipped: Tensor, index: int) -> Tensor:
        """Hidden features, followed by the encoded input where layer `index` has a skip."""
        return torch.cat((x, skipped.to(x.dtype)), dim=1) if index in self.skips else x


FOREGROUND_CENTERS = ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5))
BACKGROUND_CENTER = (-0.5, -0.5)


@dataclass(frozen=True)
class Layer:
    """One layer of the video, and where its atlas lies in the square [-1, 1]^2 that all layers share."""

    index: int  # front to back
    name: str
    atlas_center: tuple[float, float]  # the layer's square is this +- 0.5
    is_background: bool = False

    @property
    def motion_kind(self) -> str:
        """The kind of transform by which the layer is aligned: "affine" for objects, else "homography"."""
        return "homography" if self.is_background else "affine"


class Layers(tuple[Layer, ...]):
    """All layers of a video, front to back: foreground objects first, the background last."""

    @classmethod
    def for_objects(cls, objects: int) -> "Layers":
        """The layers of so many foreground objects; the shared atlas has room for three of them."""
        names = ["foreground"] + [f"foreground{number}" for number in range(2, objects + 1)]
        centers = FOREGROUND_CENTERS[:objects]
        foregrounds = [Layer(i, *pair) for i, pair in enumerate(zip(names, centers, strict=True))]
        return cls([*foregrounds, Layer(objects, "background", BACKGROUND_CENTER, is_background=True)])

    @property
    def foregrounds(self) -> tuple[Layer, ...]:
        """The objects, front to back."""
        return self[:-1]

    @property
    def background(self) -> Layer:
        """The layer behind all objects."""
        return self[-1]

    @property
    def names(self) -> list[str]:
        """The names of all layers, front to back."""
        return [layer.name for layer in self]


def visibility(alpha: Tensor) -> Tensor:
    """Share of each layer in a pixel, front to back (Eq. 1): opacities (F, N, 1) -> (F + 1, N, 1), summing to 1."""
    behind = torch.cat((torch.ones_like(alpha[:1]), torch.cumprod(1 - alpha, dim=0)))
    return torch.cat((behind[:-1] * alpha, behind[-1:]))


@dataclass
class Sample:
    """What the model says of N points: L layers, the last one the background."""

    uv: Tensor  # (L, N, 2), each layer's own square [-1, 1]; grids go beyond it where a layer is not
    alpha: Tensor  # (L - 1, N, 1)
    colors: Tensor  # (L, N, 3) in [0, 1]; (L, 0, 3) where they were not asked for
    light: Tensor | None = None  # (N, 3) factor of the colours, close to 1; None: a model without it

    @property
    def unlit(self) -> Tensor:
        """(N, 3): the layers seen through one another."""
        return (visibility(self.alpha) * self.colors).sum(0)

    @property
    def rgb(self) -> Tensor:
        """(N, 3): the layers seen through one another, as they are lit."""
        return self.unlit if self.light is None else self.unlit * self.light


class Model(Protocol):
    """What training, rendering, editing and export need of a model, whichever its representation.

    T frames of H x W pixels; L layers, front to back, the background last. uv lies in a layer's own square [-1, 1]^2,
    atlas_uv in the square that all layers share.
    """

    layers: Layers
    atlas_centers: Tensor  # (L, 1, 2)

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """Evaluate all pixels of frame t of a clip of (T, H, W), row by row.

        full_range: opacity reaches 0 and 1. output_size: (width, height) of the pixels to evaluate; None: those of the
        clip.
        """
        ...

    def colors(self, uv: Tensor) -> Tensor:
        """(L, N, 2) -> (L, N, 3) in [0, 1]: the colour of every layer."""
        ...

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """(N, 2) in the shared square -> (N, 3) in [0, 1]."""
        ...

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Pixels of a clip of (T, H, W) per unit of a layer's uv."""
        ...

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a checkpoint keeps of the model."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All tensors that training changes."""
        ...

    def eval(self) -> Self:
        """Switch to rendering; returns the model."""
        ...


def frame_pixels(t: int, size: tuple[int, int], output_size: tuple[int, int] | None, device: torch.device) -> Tensor:
    """Pixel centers (N, 3) as (x, y, t) of frame t, row by row, in the pixels of a clip of (H, W).

    output_size: (width, height) of the raster to cover the frame with; None: the clip's own.
    """
    height, width = size
    if output_size is None:
        return frame_points(t, height, width, device)
    x, y = (output_centers(own, count) for own, count in zip((width, height), output_size, strict=True))
    y, x = torch.meshgrid(y.to(device), x.to(device), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, t)), dim=-1).view(-1, 3)


def output_centers(size: int, count: int) -> Tensor:
    """(count,) the centers of so many pixels that cover an axis of `size` pixels, in those pixels."""
    return (torch.arange(count) + 0.5) * (size / count) - 0.5


class AtlasModel(nn.Module):
    """Mappings and opacities of all layers, and the atlas they share. Points are normalized (x, y, t)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.layers = Layers.for_objects(config.objects)
        foreground_frequencies = config.number_of_positional_encoding_mapping1 * config.use_positional_encoding_mapping1
        background_frequencies = config.number_of_positional_encoding_mapping2 * config.use_positional_encoding_mapping2
        foreground = (config.number_of_channels_mapping1, config.number_of_layers_mapping1, foreground_frequencies)
        background = (config.number_of_channels_mapping2, config.number_of_layers_mapping2, background_frequencies)
        self.mappings = nn.ModuleList([IMLP(3, 2, *size) for size in [foreground] * config.objects + [background]])
        alpha = (config.number_of_channels_alpha, config.number_of_layers_alpha, config.positional_encoding_num_alpha)
        self.alphas = nn.ModuleList([IMLP(3, 1, *alpha) for _ in range(config.objects)])
        atlas = (config.number_of_channels_atlas, config.number_of_layers_atlas, config.positional_encoding_num_atlas)
        self.atlas = IMLP(2, 3, *atlas, skips=ATLAS_SKIPS)
        for network in (*self.alphas, self.atlas):
            network.low_precision = config.precision == "bfloat16"
        centers = torch.tensor([layer.atlas_center for layer in self.layers])
        self.register_buffer("atlas_centers", centers[:, None], persistent=False)
        # The only place that training and evaluation read the scale from: an aligned start may lower the config's.
        self.uv_mapping_scale = config.uv_mapping_scale

    def uv(self, xyt: Tensor, layer: int) -> Tensor:
        """(N, 3) -> (N, 2) in [-1, 1]: the place in the layer's own atlas square."""
        return self.mappings[layer](xyt)

    def uvs(self, xyt: Tensor) -> Tensor:
        """(N, 3) -> (L, N, 2): the place in every layer."""
        return torch.stack([self.uv(xyt, layer) for layer in range(len(self.layers))])

    def alpha(self, xyt: Tensor, full_range: bool = False) -> Tensor:
        """(N, 3) -> (L - 1, N, 1): in [.001, .991] as published (training needs it), or up to 0 and 1 to render."""
        share = torch.stack([network(xyt) for network in self.alphas]) / 2 + 0.5
        return share if full_range else ALPHA_SCALE * share + ALPHA_FLOOR

    def to_atlas(self, uv: Tensor) -> Tensor:
        """Layers' own squares (L, N, 2) to the shared one: half the size, at each layer's center."""
        return 0.5 * uv + self.atlas_centers

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """(N, 2) in the shared square -> (N, 3) in [0, 1]."""
        return self.atlas(atlas_uv) / 2 + 0.5

    def colors(self, uv: Tensor) -> Tensor:
        """(L, N, 2) -> (L, N, 3) in [0, 1]: the colour of every layer, in one evaluation."""
        return self.atlas_color(self.to_atlas(uv).flatten(0, 1)).view(*uv.shape[:2], 3)

    def forward(self, xyt: Tensor, full_range: bool = False) -> Sample:
        """Everything about the points (N, 3)."""
        uv = self.uvs(xyt)
        return Sample(uv, self.alpha(xyt, full_range), self.colors(uv))

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """See `Model.frame_sample`."""
        device = self.atlas_centers.device
        parts = []
        for points in frame_pixels(t, size[1:], output_size, device).split(CHUNK.get(device.type, CHUNK["cpu"])):
            xyt = normalize(points, size)
            uv = self.uvs(xyt)
            colors = self.colors(uv) if with_colors else uv.new_zeros(len(uv), 0, 3)
            parts.append((uv, self.alpha(xyt, full_range), colors))
        return Sample(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Pixels of a clip of (T, H, W) per unit of a layer's uv; the same for all layers here."""
        return uv_scale_px(size[1:], self.uv_mapping_scale)

    def named_networks(self) -> dict[str, IMLP]:
        """Networks under their published names, in the published order: mappings, opacities, atlas."""
        networks = {f"model_F_mapping{number}": network for number, network in enumerate(self.mappings, 1)}
        for number, network in enumerate(self.alphas, 1):
            networks["model_F_alpha" if number == 1 else f"model_F_alpha{number}"] = network
        return networks | {"F_atlas": self.atlas}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups in the published order."""
        return [{"params": list(network.parameters())} for network in self.named_networks().values()]

    def checkpoint(self) -> dict[str, Any]:
        """State of the networks under the published keys, and the scale of uv, which an aligned start may lower."""
        state: dict[str, Any] = {f"{name}_state_dict": net.state_dict() for name, net in self.named_networks().items()}
        return state | {"uv_mapping_scale": self.uv_mapping_scale}

    def load_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take the weights of a checkpoint. Raises UserError naming what is missing or of another size."""
        if mappings := sum(key.startswith("model_F_mapping") for key in checkpoint):
            check_object_count(path, mappings - 1, self.config)
        for name, network in self.named_networks().items():
            state = checkpoint.get(f"{name}_state_dict")
            if not isinstance(state, dict):
                raise UserError(f"{path}: has no {name}_state_dict; expected a checkpoint written by train.py")
            expected = network.state_dict()
            if state.keys() != expected.keys():
                raise UserError(
                    f"{path}: {name} has {len(state) // 2} layers, the config asks for {len(expected) // 2}; "
                    "use the config.json that lies beside the checkpoint"
                )
            for key, value in expected.items():
                if state[key].shape != value.shape:
                    raise UserError(
                        f"{path}: {name} {key} is {tuple(state[key].shape)}, the config asks for "
                        f"{tuple(value.shape)}; use the config.json that lies beside the checkpoint"
                    )
            network.load_state_dict(state)
        self.uv_mapping_scale = float(checkpoint.get("uv_mapping_scale", self.config.uv_mapping_scale))


def check_object_count(path: Path, objects: int, config: Config) -> None:
    """Raise UserError for a checkpoint of another number of objects than the config has."""
    if objects != config.objects:
        raise UserError(
            f"{path}: holds {objects} object(s), the config asks for {config.objects}; "
            "use the config.json that lies beside the checkpoint"
        )


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The dict in a checkpoint file; nothing in it is executed. Raises UserError if it is no whole checkpoint."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the folder that train.py wrote (it holds config.json too)")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except CORRUPT:
        raise UserError(f"{path}: not a checkpoint, or cut short; restore it or train again") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds {type(checkpoint).__name__}, expected the dict that train.py writes")
    if (found := checkpoint.get("format", CHECKPOINT_FORMAT)) != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: has checkpoint format {found}, this version reads format {CHECKPOINT_FORMAT}; "
            "use the version of this project that wrote it, or a newer one"
        )
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all. Raises OSError if the disk is full; the last good one stays."""
    data = io.BytesIO()  # torch.save into a file turns a full disk into an unspecific error
    torch.save(checkpoint, data)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(data.getbuffer())
        file.flush()
        os.fsync(file.fileno())
