"""One table of many clips, as CSV and as a page with previews."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import media
from batches.clip_job import DONE, LOG, ClipResult

COLUMNS = (
    "name",
    "status",
    "psnr",
    "iou",
    "seconds",
    "core_seconds",
    "peak_mb",
    "attempts",
    "run",
    "message",
)
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:24px;background:#fff;color:#222}table{border-collapse:collapse}"
    "td,th{padding:6px 10px;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}"
    "img{width:320px;display:block}.failed{color:#b3261e}td.number{text-align:right}"
)


def write_tables(output: Path, results: Sequence[ClipResult], waiting: Sequence[str]) -> Path:
    """Write clips.csv and index.html, and return the latter. waiting: names of clips that were not tried yet."""
    rows = [describe_result(result) for result in results]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(rows + [{"name": name, "status": "waiting"} for name in waiting])
    media.write_text(output / "clips.csv", stream.getvalue())
    done = sum(result.status == DONE for result in results)
    head = f"<h1>{done} of {len(results) + len(waiting)} clips</h1>"
    cells = "".join(f"<th>{name}</th>" for name in ("", "clip", "PSNR, dB", "J", "seconds", "MB", "what it says"))
    body = "".join(show_row(result, row) for result, row in zip(results, rows, strict=True))
    body += "".join(f"<tr><td></td><td>{html.escape(name)}</td><td colspan=5>waiting</td></tr>" for name in waiting)
    page = f"<!doctype html><meta charset=utf-8><title>Clips</title><style>{STYLE}</style>{head}<table><tr>{cells}</tr>"
    media.write_text(output / "index.html", f"{page}{body}</table>\n")
    return output / "index.html"


def describe_result(result: ClipResult) -> dict[str, object]:
    """Return the cells of a result by column; those that are not known are empty."""
    metrics = result.metrics or {}
    values: dict[str, object] = {
        "name": result.name,
        "status": result.status,
        "seconds": round(result.seconds, 1),
        "core_seconds": "" if result.core_seconds is None else round(result.core_seconds, 1),
        "peak_mb": "" if result.peak_mb is None else round(result.peak_mb),
        "attempts": result.attempts,
        "run": "" if result.run is None else f"{result.name}/{result.run}",
        "message": "" if result.status == DONE else result.message,
    }
    return values | {name: metrics[name] for name in ("psnr", "iou") if name in metrics}


def show_row(result: ClipResult, row: dict[str, object]) -> str:
    """Return the row of a clip in the page, with its preview, which leads to its evaluation."""
    run, log = quote(str(row["run"])), quote(f"{result.name}/{LOG}")
    picture = f'<a href="{run}/preview.png"><img src="{run}/preview.png" alt="" loading="lazy"></a>' if run else ""
    numbers = [row.get(name, "") for name in ("psnr", "iou", "seconds", "peak_mb")]
    texts = [f"{each:.2f}" if isinstance(each, float) else html.escape(str(each)) for each in numbers]
    cells = "".join(f'<td class="number">{text}</td>' for text in texts)
    cells += f'<td>{html.escape(str(row["message"]))} <a href="{log}">log</a></td>'
    return f'<tr class="{result.status}"><td>{picture}</td><td>{html.escape(result.name)}</td>{cells}</tr>\n'
