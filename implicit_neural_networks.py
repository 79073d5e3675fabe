"""The networks of the paper: an MLP with positional encoding, and the model with mappings, opacities and the atlas.

All networks are built here, with sizes from the config. Layers are ordered front to back: the foreground objects come
first, the background last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from command_line import UserError
from config import Config
from unwrap_utils import frame_points, normalize, uv_scale_px

ATLAS_SKIPS = (4, 7)  # layers of the atlas network that get the encoded input again, counted from 0
ALPHA_SCALE, ALPHA_FLOOR = 0.99, 0.001  # published range of alpha, which keeps its cross-entropy finite
CHUNK = {"cpu": 8_192, "cuda": 200_000}  # points evaluated at once; 8,192 fit the cache of a CPU, which halves the time


def positional_encoding(points: Tensor, frequencies: Tensor) -> Tensor:
    """Encode points (N, D) with K frequencies as (N, 2 * D * K).

    For each frequency there are the sines of all coordinates, then their cosines.
    """
    angles = points[:, None, :] * frequencies[:, None]
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class IMLP(nn.Module):
    """A fully connected network with ReLU between layers and tanh at the end.

    layers: number of layers, with the output layer. frequencies: number of frequencies of the positional encoding, 0
    for none. skips: layers that get the encoded input beside the hidden features. With low_precision the layers
    between the first and the last run in bfloat16; those two need the precision for coordinates and results.
    """

    frequencies: Tensor  # (K,)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        channels: int,
        layers: int,
        frequencies: int = 0,
        skips: tuple[int, ...] = (),
    ):
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(frequencies), persistent=False)
        encoded = 2 * inputs * frequencies or inputs
        self.skips = {index for index in skips if index < layers}
        widths = [encoded] + [channels + encoded * (index in self.skips) for index in range(1, layers)]
        sizes = zip(widths, [channels] * (layers - 1) + [outputs], strict=True)
        self.hidden = nn.ModuleList(nn.Linear(width_in, width_out) for width_in, width_out in sizes)
        self.low_precision = False

    def forward(self, points: Tensor) -> Tensor:
        """Evaluate the network: (N, inputs) -> (N, outputs) in (-1, 1)."""
        x = positional_encoding(points, self.frequencies) if len(self.frequencies) else points
        # Published behaviour, kept because it changes training: no gradient reaches (u, v) through a skip.
        encoded = x.detach()
        x = self.hidden[0](x)
        with torch.autocast(points.device.type, torch.bfloat16, enabled=self.low_precision):
            for index, layer in enumerate(self.hidden[1:-1], start=1):
                x = layer(self.append_skip(x.relu(), encoded, index))
        last = len(self.hidden) - 1
        return torch.tanh(self.hidden[last](self.append_skip(x.relu().to(points.dtype), encoded, last)))

    def append_skip(self, x: Tensor, encoded: Tensor, index: int) -> Tensor:
        """Return the input of layer `index`: the hidden features, followed by the encoded input if it has a skip."""
        return torch.cat((x, encoded.to(x.dtype)), dim=1) if index in self.skips else x


# centers of the layers' squares in the atlas square [-1, 1]^2 that all layers share
FOREGROUND_CENTERS = ((0.5, 0.5), (0.5, -0.5), (-0.5, 0.5))
BACKGROUND_CENTER = (-0.5, -0.5)


@dataclass(frozen=True)
class Layer:
    """One layer of the video, and the position of its atlas in the square [-1, 1]^2 that all layers share."""

    index: int  # 0 is the front layer
    name: str
    atlas_center: tuple[float, float]  # the layer's square reaches 0.5 to each side of it
    is_background: bool = False

    @property
    def motion_kind(self) -> str:
        """Kind of transform that aligns the layer: "affine" for objects, "homography" for the background."""
        return "homography" if self.is_background else "affine"


def uv_to_atlas(uv: Any, center: Any) -> Any:
    """Convert uv of a layer's own square [-1, 1]^2 to the shared atlas square: half the size, at the layer's center.

    Works on numbers, arrays and tensors.
    """
    return 0.5 * uv + center


def atlas_to_uv(atlas_uv: Any, center: Any) -> Any:
    """Convert a position in the shared atlas square to uv of a layer's own square; the inverse of `uv_to_atlas`."""
    return 2 * (atlas_uv - center)


class Layers(tuple[Layer, ...]):
    """The layers of a video, front to back: the foreground objects first, the background last."""

    @classmethod
    def for_objects(cls, objects: int) -> "Layers":
        """Return the layers for a number of foreground objects. The shared atlas has room for three objects."""
        names = ["foreground"] + [f"foreground{number}" for number in range(2, objects + 1)]
        centers = FOREGROUND_CENTERS[:objects]
        foregrounds = [Layer(i, *pair) for i, pair in enumerate(zip(names, centers, strict=True))]
        return cls([*foregrounds, Layer(objects, "background", BACKGROUND_CENTER, is_background=True)])

    @property
    def foregrounds(self) -> tuple[Layer, ...]:
        """The foreground layers, front to back."""
        return self[:-1]

    @property
    def background(self) -> Layer:
        """The background layer."""
        return self[-1]

    @property
    def names(self) -> list[str]:
        """Names of all layers, front to back."""
        return [layer.name for layer in self]


def visibility(alpha: Tensor) -> Tensor:
    """Return how much of each layer a pixel shows (Eq. 1): opacities (F, N, 1) -> (F + 1, N, 1), with sum 1.

    Layers are ordered front to back; the last one is the background.
    """
    transmittance = torch.cat((torch.ones_like(alpha[:1]), torch.cumprod(1 - alpha, dim=0)))
    return torch.cat((transmittance[:-1] * alpha, transmittance[-1:]))


@dataclass
class Sample:
    """The values of a model at N points. There are L layers, the last one is the background."""

    uv: Tensor  # (L, N, 2) in each layer's own square [-1, 1]^2; grids leave it where a layer has no atlas
    alpha: Tensor  # (L - 1, N, 1) opacity of each foreground layer
    colors: Tensor  # (L, N, 3) in [0, 1]; (L, 0, 3) if no colours were requested
    light: Tensor | None = None  # (N, 3) factor of the colours, close to 1; None: the model has no light

    @property
    def unlit(self) -> Tensor:
        """Colours (N, 3) of the composited layers, without light."""
        return (visibility(self.alpha) * self.colors).sum(0)

    @property
    def rgb(self) -> Tensor:
        """Colours (N, 3) of the composited layers, with light if the model has it."""
        return self.unlit if self.light is None else self.unlit * self.light


class Model(Protocol):
    """The interface of all models, whatever their representation, for training, rendering, editing and export.

    A clip has T frames of H x W pixels. There are L layers, front to back; the last one is the background. uv is a
    position in a layer's own square [-1, 1]^2, atlas_uv a position in the square that all layers share.
    """

    layers: Layers
    atlas_centers: Tensor  # (L, 1, 2) centers of the layers' squares in the shared one

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """Evaluate the model at all pixels of frame t of a clip of size (T, H, W), row by row.

        full_range: opacity reaches 0 and 1. with_colors: evaluate colours too. output_size: (width, height) of the
        pixel grid to evaluate; None: the pixels of the clip.
        """
        ...

    def colors(self, uv: Tensor) -> Tensor:
        """Return the colours of all layers at their own uv: (L, N, 2) -> (L, N, 3) in [0, 1]."""
        ...

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """Return the atlas colours at positions in the shared square: (N, 2) -> (N, 3) in [0, 1]."""
        ...

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Return the pixels per unit of a layer's uv, for a clip of size (T, H, W)."""
        ...

    def projection(self, layer: int) -> str:
        """Return how a layer's frames were laid onto its atlas before training: "plane", "cylinder" or "learned"."""
        ...

    def uv_units(self, layer: int) -> tuple[float, float, float]:
        """Return (scale, u, v) with which scale * uv + (u, v) is the layer's uv before its atlas was ever enlarged.

        An atlas that is enlarged later still covers [-1, 1], so its uv changes; with these units pictures that were
        painted before keep their place.
        """
        ...

    def mapping_kinks(self) -> tuple[list[float], list[float]]:
        """Return the rows and columns of a frame, in pixels, at which mappings have kinks; they are smooth between."""
        ...

    def lattice_uv(self, t: int, rows_px: Tensor, columns_px: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return the uv of all layers in frame t at all crossings of rows (r,) and columns (c,), (L, r, c, 2).

        size: of the clip, (T, H, W).
        """
        ...

    def checkpoint(self) -> dict[str, Any]:
        """Return the content of a checkpoint: everything that is needed to restore the model."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all tensors that training changes."""
        ...

    def eval(self) -> Self:
        """Switch the model to evaluation, and return it."""
        ...


def frame_pixels(t: int, size: tuple[int, int], output_size: tuple[int, int] | None, device: torch.device) -> Tensor:
    """Return points (N, 3) as (x, y, t) that cover frame t row by row, in pixels of a clip of size (H, W).

    output_size: (width, height) of the pixel grid that covers the frame; None: the pixels of the clip.
    """
    height, width = size
    if output_size is None:
        return frame_points(t, height, width, device)
    columns, rows = (output_centers(extent, count) for extent, count in zip((width, height), output_size, strict=True))
    y, x = torch.meshgrid(rows.to(device), columns.to(device), indexing="ij")
    return torch.stack((x, y, torch.full_like(x, t)), dim=-1).view(-1, 3)


def output_centers(size: int, count: int) -> Tensor:
    """Return the centers (count,) of `count` output pixels that cover an axis of `size` pixels, in units of those."""
    return (torch.arange(count) + 0.5) * (size / count) - 0.5


class AtlasModel(nn.Module):
    """The model of the paper: a mapping per layer, an opacity per foreground object, and one atlas for all layers.

    Points xyt are normalized (x, y, t), (N, 3).
    """

    atlas_centers: Tensor  # (L, 1, 2) centers of the layers' squares in the shared one

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
        # Training and evaluation read the scale from here only: an aligned start may lower the value of the config.
        self.uv_mapping_scale = config.uv_mapping_scale

    def uv(self, xyt: Tensor, layer: int) -> Tensor:
        """Return the positions of points in a layer's own square: (N, 3) -> (N, 2) in [-1, 1]."""
        return self.mappings[layer](xyt)

    def uvs(self, xyt: Tensor) -> Tensor:
        """Return the positions of points in the squares of all layers: (N, 3) -> (L, N, 2)."""
        return torch.stack([self.uv(xyt, layer) for layer in range(len(self.layers))])

    def alpha(self, xyt: Tensor, full_range: bool = False) -> Tensor:
        """Return the opacity of the foreground layers: (N, 3) -> (L - 1, N, 1).

        It lies in [0.001, 0.991] as published, which training needs, or with full_range in [0, 1], for rendering.
        """
        alpha = torch.stack([network(xyt) for network in self.alphas]) / 2 + 0.5
        return alpha if full_range else ALPHA_SCALE * alpha + ALPHA_FLOOR

    def to_atlas(self, uv: Tensor) -> Tensor:
        """Convert uv in the layers' own squares to atlas_uv in the shared square, (L, N, 2) both.

        Own squares have half their size in the shared one and lie around the layers' centers.
        """
        return uv_to_atlas(uv, self.atlas_centers)

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """Return the atlas colours at positions in the shared square: (N, 2) -> (N, 3) in [0, 1]."""
        return self.atlas(atlas_uv) / 2 + 0.5

    def colors(self, uv: Tensor) -> Tensor:
        """Return the colours of all layers at their own uv: (L, N, 2) -> (L, N, 3) in [0, 1]."""
        return self.atlas_color(self.to_atlas(uv).flatten(0, 1)).view(*uv.shape[:2], 3)

    def forward(self, xyt: Tensor, full_range: bool = False) -> Sample:
        """Evaluate uv, opacity and colours at points (N, 3)."""
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
        return Sample(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Return the pixels per unit of uv, for a clip of size (T, H, W). It is the same for all layers."""
        return uv_scale_px(size[1:], self.uv_mapping_scale)

    def projection(self, layer: int) -> str:
        """Return "learned": networks may lay the frames onto the atlas in any way."""
        return "learned"

    def uv_units(self, layer: int) -> tuple[float, float, float]:
        """Return the units of uv, which networks never change; see `Model.uv_units`."""
        return 1.0, 0.0, 0.0

    def mapping_kinks(self) -> tuple[list[float], list[float]]:
        """Return no rows and no columns: mappings are smooth everywhere."""
        return [], []

    def lattice_uv(self, t: int, rows_px: Tensor, columns_px: Tensor, size: tuple[int, int, int]) -> Tensor:
        """See `Model.lattice_uv`."""
        y, x = torch.meshgrid(rows_px, columns_px, indexing="ij")
        points = torch.stack((x, y, torch.full_like(x, t)), dim=-1).view(-1, 3).float()
        return self.uvs(normalize(points.to(self.atlas_centers.device), size)).unflatten(1, x.shape)

    def networks_by_name(self) -> dict[str, nn.Module]:
        """Return the networks by their published names, in the published order: mappings, opacities, atlas."""
        networks = {f"model_F_mapping{number}": network for number, network in enumerate(self.mappings, 1)}
        for number, network in enumerate(self.alphas, 1):
            networks["model_F_alpha" if number == 1 else f"model_F_alpha{number}"] = network
        return networks | {"F_atlas": self.atlas}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer, in the published order."""
        return [{"params": list(network.parameters())} for network in self.networks_by_name().values()]

    def checkpoint(self) -> dict[str, Any]:
        """Return the states of the networks under their published keys, and the scale of uv."""
        state: dict[str, Any] = {
            f"{name}_state_dict": net.state_dict() for name, net in self.networks_by_name().items()
        }
        return state | {"uv_mapping_scale": self.uv_mapping_scale}

    def load_checkpoint(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Load the weights of a checkpoint. Raises UserError if a network is missing or has another size.

        path: the checkpoint file, for messages.
        """
        if mappings := sum(key.startswith("model_F_mapping") for key in checkpoint):
            check_object_count(path, mappings - 1, self.config)
        for name, network in self.networks_by_name().items():
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
    """Raise UserError if a checkpoint holds another number of foreground objects than the config asks for."""
    if objects != config.objects:
        raise UserError(
            f"{path}: holds {objects} object(s), the config asks for {config.objects}; "
            "use the config.json that lies beside the checkpoint"
        )
