"""The page of an evaluation: atlases, videos and plots side by side, for any browser, without a server."""

from html import escape
from pathlib import Path
from urllib.parse import quote

from media import natural_key, write_text

UNITS = {"psnr": " dB", "seconds": " s", "peak_memory_mb": " MB"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.2rem }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .6rem }
img, video { width: 100%; background: #000 } figcaption { padding-top: .4rem } b { font-weight: 600 }
table { border-collapse: collapse } td, th { padding: .1rem 1.2rem .1rem 0; text-align: left }
"""


def explanations(layers: list[str]) -> dict[str, str]:
    """What each kind of picture and video shows, in the order of the page; layers by name, front to back."""
    of_layers: dict[str, str] = {}
    for number, name in enumerate(layers, 1):
        of_layers |= {
            f"uv_{number}": f"{name} mapping as colours",
            f"uv_{number}_masked": f"the same, where the {name} is visible",
            f"checkerboard_{number}": f"squares that lie still on the {name}",
            f"edited{number}": f"letters printed on the {name} atlas",
            f"edited{number}_tex": f"the whole {name} layer with letters, opacity aside",
            f"texture_orig{number}": f"{name} atlas",
            f"texture_orig{number}_alpha": f"{name} atlas, see-through where no frame sees it",
            f"texture_edit{number}": f"{name} atlas with letters",
        }
    return {
        "reconstruction": "what the layers show together",
        "alpha": "opacity of the foreground",
        "alpha_vs_mask_rcnn": "opacity (left) and the rough mask it started from",
        "residuals": "difference from the frames",
        **of_layers,
        "edit": "letters on all layers",
        "global_info": "where colour, rigidity and flow are violated",
        "quality": "figures of each frame",
    }


def write_page(folder: Path, clip_name: str, metrics: dict, layers: list[str]) -> None:
    """Write index.html over all pictures and videos that lie in the folder; layers by name, front to back."""
    told = explanations(layers)
    figures = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{value:.4g}{UNITS.get(name, '')}</td></tr>" for name, value in figures
    )
    pictures = "".join(media_element(path, clip_name, told) for path in sorted(folder.glob("*.png"), key=natural_key))
    videos = sorted(folder.glob("*.mp4"), key=lambda path: page_order(kind_of(path, clip_name), told))
    parts = [
        f"<h1>{escape(clip_name)}</h1><table>{rows}</table>",
        f"<h2>Videos</h2><section>{''.join(media_element(path, clip_name, told) for path in videos)}</section>",
        f"<h2>Atlases and plots</h2><section>{pictures}</section>",
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(clip_name)}</title>'
    write_text(folder / "index.html", f"{head}<style>{STYLE}</style>{''.join(parts)}</html>\n")


def kind_of(path: Path, clip_name: str) -> str:
    """reconstruction_swan.mp4 -> reconstruction."""
    return path.stem.removesuffix(f"_{clip_name}")


def page_order(kind: str, told: dict[str, str]) -> tuple[int, str]:
    """Place of a video on the page: the order of the explanations, unknown ones last."""
    kinds = list(told)
    return (kinds.index(kind) if kind in kinds else len(kinds), kind)


def media_element(path: Path, clip_name: str, told: dict[str, str]) -> str:
    """One picture or video with its name and what it shows."""
    name, link = escape(path.name), quote(path.name)
    if path.suffix == ".mp4":
        element = f'<video src="{link}" controls loop muted autoplay playsinline></video>'
    else:
        element = f'<a href="{link}"><img src="{link}" alt="{name}"></a>'
    explanation = escape(told.get(kind_of(path, clip_name), ""))
    return f"<figure>{element}<figcaption><b>{name}</b> {explanation}</figcaption></figure>"
