"""All results of a benchmark as one table (Markdown, CSV, JSON) and a plot of quality against time."""

import csv
import io
import json
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.plots import save_figure
from media import write_text

COLUMNS = {
    "clip": ("clip", "{}"),
    "config": ("config", "{}"),
    "budget_s": ("budget, s", "{:.0f}"),
    "iterations": ("iterations", "{}"),
    "psnr": ("PSNR, dB", "{:.2f}"),
    "psnr_unlit": ("without light", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "iou": ("J", "{:.3f}"),
    "boundary_f": ("F", "{:.3f}"),
    "alpha_error": ("opacity error", "{:.4f}"),
    "placement_px": ("placement error, px", "{:.2f}"),
    "placement_within_1": ("within 1 px", "{:.3f}"),
    "placement_within_4": ("within 4 px", "{:.3f}"),
    "round_trip_psnr": ("edit round trip, dB", "{:.2f}"),
    "warp_error_short": ("warp error, 1 frame", "{:.5f}"),
    "warp_error_long": ("warp error, 10 frames", "{:.5f}"),
    "atlas_use_foreground": ("atlas seen, foreground", "{:.3f}"),
    "atlas_use_background": ("background", "{:.3f}"),
    "scale_spread_foreground": ("scale spread, foreground", "{:.3f}"),
    "shear_foreground": ("shear, foreground", "{:.3f}"),
    "scale_spread_background": ("scale spread, background", "{:.3f}"),
    "shear_background": ("shear, background", "{:.3f}"),
    "peak_memory_mb": ("peak memory, MB", "{:.0f}"),
}


def write_results(output: Path, machine: str) -> Path:
    """Write results.md, results.csv, results.json and results.png over all cases done; returns the table."""
    done = [(json.loads(path.read_text(encoding="utf-8")), path.parent.name) for path in output.glob("*/result.json")]
    done.sort(key=lambda case: (case[0]["clip"], case[0]["config"], case[0]["budget_s"]))
    rows = [row for row, _ in done]
    sheets = "".join(f"\n![{name}]({name}/sheet.png)\n" for _, name in done)
    note = f"Measured on: {machine}. A dash: the clip has no truth for that figure.\n"
    write_text(output / "results.md", f"{markdown(rows)}\n{note}\n![PSNR and J against time](results.png)\n{sheets}")
    write_text(output / "results.csv", csv_text(rows))
    write_text(output / "results.json", json.dumps({"machine": machine, "results": rows}, indent=2) + "\n")
    plot(output / "results.png", rows)
    return output / "results.md"


def markdown(rows: list[dict]) -> str:
    """The rows as a table; columns that no row has are left out, single missing values are dashes."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[name][0] for name in columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [COLUMNS[name][1].format(row[name]) if row.get(name) is not None else "-" for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def csv_text(rows: list[dict]) -> str:
    """All figures of all rows, unrounded."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot(path: Path, rows: list[dict]) -> None:
    """PSNR and J against the budget, a line per clip and config."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    plots = figure.subplots(1, 2)
    for one, (name, label) in zip(plots, (("psnr", "PSNR, dB"), ("iou", "J")), strict=True):
        for series in dict.fromkeys((row["clip"], row["config"]) for row in rows):
            points = sorted(
                (row["budget_s"], row[name]) for row in rows if (row["clip"], row["config"]) == series and name in row
            )
            if points:
                one.plot(*zip(*points, strict=True), marker="o", label=" ".join(series))
        one.set_xlabel("time budget, s")
        one.set_ylabel(label)
        one.grid(alpha=0.3)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    save_figure(figure, path)
