"""Write the results of a benchmark as one table (Markdown, CSV, JSON) and as a plot of quality against time."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.tracks import COLUMNS as TRACK_COLUMNS
from evaluation.plots import save_figure
from media import write_text

COLUMNS = {  # heading and number format of each metric
    "clip": ("clip", "{}"),
    "config": ("config", "{}"),
    "budget_s": ("budget, s", "{:.0f}"),
    "iterations": ("iterations", "{}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "psnr_without_looks": ("without looks", "{:.2f}"),
    "seconds_to_95": ("s to 95 % of it", "{:.0f}"),
    "seconds_to_99": ("s to 99 % of it", "{:.0f}"),
    "psnr_unlit": ("without light", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "input_iou": ("J of the given masks", "{:.3f}"),
    "iou": ("J", "{:.3f}"),
    "input_boundary_f": ("F of the given masks", "{:.3f}"),
    "boundary_f": ("F", "{:.3f}"),
    "alpha_error": ("opacity error", "{:.4f}"),
    "placement_px": ("placement error, px", "{:.2f}"),
    "placement_within_1": ("within 1 px", "{:.3f}"),
    "placement_within_4": ("within 4 px", "{:.3f}"),
    "round_trip_psnr": ("edit round trip, dB", "{:.2f}"),
    "hat_px": ("hat's placement error, px", "{:.2f}"),
    "hat_psnr": ("hat, dB", "{:.1f}"),
    "shape_psnr": ("behind a new shape, dB", "{:.1f}"),
    **{name: (heading, "{:.2f}" if name == "uv_spread_px" else "{:.1f}") for name, heading in TRACK_COLUMNS.items()},
    "warp_error_short": ("warp error, 1 frame", "{:.5f}"),
    "warp_error_long": ("warp error, 10 frames", "{:.5f}"),
    "atlas_use_foreground": ("visible part of atlas, foreground", "{:.3f}"),
    "atlas_use_background": ("background", "{:.3f}"),
    "scale_spread_foreground": ("scale spread, foreground", "{:.3f}"),
    "shear_foreground": ("shear, foreground", "{:.3f}"),
    "scale_spread_background": ("scale spread, background", "{:.3f}"),
    "shear_background": ("shear, background", "{:.3f}"),
    "peak_memory_mb": ("peak memory, MB", "{:.0f}"),
}


def write_results(output: Path, machine: str) -> Path:
    """Write results.md, results.csv, results.json and results.png for all finished cases.

    output: folder of the benchmark. machine: a description for the table. Returns the path of results.md.
    """
    results = [
        (json.loads(path.read_text(encoding="utf-8")), path.parent.name) for path in output.glob("*/result.json")
    ]
    results.sort(key=lambda result: (result[0]["clip"], result[0]["config"], result[0]["budget_s"]))
    rows = [row for row, _ in results]
    sheets = "".join(f"\n![{name}]({name}/sheet.png)\n" for _, name in results)
    note = f"Measured on: {machine}. A dash: the clip has no truth for this metric.\n"
    table = markdown_table(rows)
    write_text(output / "results.md", f"{table}\n{note}\n![PSNR and J against time](results.png)\n{sheets}")
    write_text(output / "results.csv", csv_text(rows))
    write_text(output / "results.json", json.dumps({"machine": machine, "results": rows}, indent=2) + "\n")
    plot_results(output / "results.png", rows)
    return output / "results.md"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown. Columns without any value are left out; a missing value is a dash."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[name][0] for name in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [COLUMNS[name][1].format(row[name]) if row.get(name) is not None else "-" for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return all values of all rows as CSV, not rounded."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a plot of PSNR and J against the time budget, with one line for each clip and config."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    plots = figure.subplots(1, 2)
    for plot, (name, label) in zip(plots, (("psnr", "PSNR, dB"), ("iou", "J")), strict=True):
        for series in dict.fromkeys((row["clip"], row["config"]) for row in rows):
            points = sorted(
                (row["budget_s"], row[name]) for row in rows if (row["clip"], row["config"]) == series and name in row
            )
            if points:
                plot.plot(*zip(*points, strict=True), marker="o", label=" ".join(series))
        plot.set_xlabel("time budget, s")
        plot.set_ylabel(label)
        plot.grid(alpha=0.3)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    save_figure(figure, path)
