"""The page of an evaluation: videos, atlases and plots in one HTML file that any browser shows without a server."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from media import natural_key, write_text

UNITS = {"psnr": " dB", "seconds": " s", "peak_memory_mb": " MB"}  # by metric
# What each metric says, by its name. The names of those of one layer end with the layer's name.
MEANINGS = {
    "psnr": "how close all layers together come to the frames, more is better; 29 to 36 on nine real clips after 60 s",
    "ssim": "likeness of structure with the frames, 1 is best; .90 to .97 on nine real clips after 60 s",
    "lpips": "difference from the frames as a network sees it, 0 is best",
    "psnr_unlit": "PSNR without the learned light; lower where shadows or light move",
    "iou": "J of DAVIS: overlap of the opacity with the true mask, 1 is best; rough masks have .62 to .90",
    "boundary_f": "F of DAVIS: how well the outline of the opacity meets that of the true mask, 1 is best",
    "edit_warp_error": "how much the printed letters change along the optical flow, 0 is best",
    "atlas_use": "part of the atlas picture that some frame shows; the rest is empty",
    "scale_spread": "how much the scale of the mapping varies; 0: everything is equally large in the atlas",
    "shear": "how much the mapping stretches in one direction more than in the other; 0: not at all",
    "seconds": "time that this evaluation took",
    "peak_memory_mb": "most memory that the process used",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.2rem }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .6rem }
img, video { width: 100%; background: #000 } figcaption { padding-top: .4rem } b { font-weight: 600 }
table { border-collapse: collapse } td, th { padding: .1rem 1.2rem .1rem 0; text-align: left }
"""


def describe_outputs(layers: list[str]) -> dict[str, str]:
    """Return what each kind of picture and video shows, in the order of the page. layers: names, front to back."""
    layer_outputs: dict[str, str] = {}
    for number, name in enumerate(layers, 1):
        layer_outputs |= {
            f"uv_{number}": f"{name} mapping as colours",
            f"uv_{number}_masked": f"{name} mapping as colours, where the {name} is visible",
            f"checkerboard_{number}": f"checkerboard that is fixed to the {name}",
            f"edited{number}": f"letters printed on the {name} atlas",
            f"edited{number}_tex": f"the whole {name} layer with letters, without its opacity",
            f"texture_orig{number}": f"{name} atlas",
            f"texture_orig{number}_alpha": f"{name} atlas, transparent where no frame shows it",
            f"texture_edit{number}": f"{name} atlas with letters",
        }
    return {
        "reconstruction": "the composite of all layers",
        "alpha": "opacity of the foreground",
        "alpha_vs_mask_rcnn": "opacity (left) and the rough mask (right)",
        "residuals": "absolute difference from the frames",
        **layer_outputs,
        "edit": "letters on all layers",
        "global_info": "errors of colour, rigidity, flow and opacity",
        "quality": "metrics of each frame",
    }


def write_page(folder: Path, clip_name: str, metrics: dict, layers: list[str]) -> None:
    """Write index.html, which shows the metrics and all pictures and videos in the folder.

    metrics: those that are numbers become a table. layers: names of the layers, front to back.
    """
    descriptions = describe_outputs(layers)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{value:.4g}{UNITS.get(name, '')}</td>"
        f"<td>{find_meaning(name, layers)}</td></tr>"
        for name, value in numbers.items()
    )
    images = sorted(folder.glob("*.png"), key=natural_key)
    videos = sorted(folder.glob("*.mp4"), key=lambda path: page_position(output_kind(path, clip_name), descriptions))
    parts = [
        f"<h1>{escape(clip_name)}</h1><table>{rows}</table>",
        f"<h2>Videos</h2><section>{media_elements(videos, clip_name, descriptions)}</section>",
        f"<h2>Atlases and plots</h2><section>{media_elements(images, clip_name, descriptions)}</section>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(clip_name)}</title>'
    write_text(folder / "index.html", f"{head}<style>{STYLE}</style>{''.join(parts)}</html>\n")


def find_meaning(metric: str, layers: list[str]) -> str:
    """Return what a metric says; "" if it is not known. layers: names of the layers."""
    layer = next((name for name in layers if metric.endswith(f"_{name}")), None)
    return MEANINGS.get(metric if layer is None else metric.removesuffix(f"_{layer}"), "")


def output_kind(path: Path, clip_name: str) -> str:
    """Return a file's name without its suffix and the clip's name: reconstruction_swan.mp4 -> reconstruction."""
    return path.stem.removesuffix(f"_{clip_name}")


def page_position(kind: str, descriptions: dict[str, str]) -> tuple[int, str]:
    """Return the sort key of a video: the order of the descriptions, other kinds last by name."""
    kinds = list(descriptions)
    return (kinds.index(kind) if kind in kinds else len(kinds), kind)


def media_elements(paths: list[Path], clip_name: str, descriptions: dict[str, str]) -> str:
    """Return the HTML of pictures and videos, each with its file name and description."""
    return "".join(media_element(path, descriptions.get(output_kind(path, clip_name), "")) for path in paths)


def media_element(path: Path, description: str) -> str:
    """Return the HTML of one picture or video with its file name and description."""
    name, link = escape(path.name), quote(path.name)
    if path.suffix == ".mp4":
        element = f'<video src="{link}" controls loop muted autoplay playsinline></video>'
    else:
        element = f'<a href="{link}"><img src="{link}" alt="{name}"></a>'
    return f"<figure>{element}<figcaption><b>{name}</b> {escape(description)}</figcaption></figure>"
