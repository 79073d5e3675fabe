"""Plots of metrics and losses, written as PNG files without a display."""

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from media import write_atomically

LABELS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "psnr_unlit": "PSNR\nwithout light, dB",
    "iou": "J: overlap with\nthe true mask",
    "boundary_f": "F: outline of\nthe true mask",
}
OTHER_KEYS = ("iteration", "psnr", "psnr_of_batch", "seconds")  # Entries of a log that are no terms of the loss.
CURVE_COLORS = 20  # Colours in matplotlib's colormap "tab20".


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file. If writing fails, no file of that name is left unfinished."""
    with write_atomically(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def plot_per_frame(path: Path, per_frame: dict[str, list[float]]) -> None:
    """Write a plot of each metric against the frame number, one below the other."""
    figure = Figure(figsize=(8, 2.2 * len(per_frame)), layout="constrained")
    plots = figure.subplots(len(per_frame), 1, sharex=True, squeeze=False)[:, 0]
    for plot, (name, values) in zip(plots, per_frame.items(), strict=True):
        plot.plot(values, marker=".")
        plot.set_ylabel(LABELS.get(name, name))
        plot.grid(alpha=0.3)
    plots[-1].set_xlabel("frame")
    save_figure(figure, path)


def plot_training(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a plot of the weighted loss terms (logarithmic) and of the PSNR against the iteration.

    rows: the lines of a run's log.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    losses, quality = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.set_prop_cycle(color=[matplotlib.colormaps["tab20"](index) for index in range(CURVE_COLORS)])
    for name in dict.fromkeys(key for row in rows for key in row if key not in OTHER_KEYS):
        points = [(row["iteration"], row[name]) for row in rows if row.get(name, 0) > 0]
        if points:
            # Without a marker, nothing would be seen of a run that wrote one row.
            marker = "." if len(points) == 1 else None
            losses.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "total" else 1, marker=marker)
    losses.set_ylabel("weighted loss")
    if losses.lines:
        losses.set_yscale("log")
        losses.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for name, label, style in (
        ("psnr_of_batch", "of the pixels\nof a step", {"linewidth": 1, "color": "grey", "marker": "."}),
        ("psnr", "of an evaluation", {"marker": "o", "color": "tab:blue"}),
    ):
        scores = [(row["iteration"], row[name]) for row in rows if name in row]
        if scores:
            quality.plot(*zip(*scores, strict=True), label=label, **style)
    if quality.lines:
        quality.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    quality.set_ylabel("PSNR, dB")
    quality.set_xlabel("iteration")
    for plot in (losses, quality):
        plot.grid(alpha=0.3)
    save_figure(figure, path)
