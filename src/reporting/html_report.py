"""Write a run as one HTML page without scripts or outside references, readable offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from src.evaluation.class_tables import class_table, confusion_table
from src.job.iteration_results import counts_of, has_failed, summary_of
from src.job.job_record import exit_states
from src.printing import printable
from src.reporting.detections import LabelledPicture
from src.reporting.log_events import Event, RunLogs, most_serious, read_logs
from src.reporting.pictures import KEY, class_lines, panels_of
from src.reporting.plots import (
    PHASES,
    colour,
    epoch_figure,
    memory_figure,
    metrics_figure,
    phase_seconds,
    rendered,
    seconds_figure,
    step_figure,
)
from src.reporting.run_folder import Run, Silo, number_in
from src.reporting.run_settings import Settings, read_settings

MOST_ROWS = 200
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Card:
    """Describe a metric at the top of the page: name, value, and a line; `bad` colours it."""

    name: str
    value: str
    more: str = ""
    bad: bool = False


@dataclass
class Table:
    """Hold the rows of one silo.

    Attributes:
        name: name of the silo.
        headers: column headers.
        rows: texts.
        hidden: number of rows before them that are left out.
        last: iteration of the last row.
        classes: header and rows of the last row's classes.
        confusion: header and rows of its confusion table.
        threshold: score and overlap of what counts as found in it.
    """

    name: str
    headers: list[str]
    rows: list[list[str]]
    hidden: int = 0
    last: str = ""
    classes: list[list[str]] = field(default_factory=list)
    confusion: list[list[str]] = field(default_factory=list)
    threshold: str = ""


def cards(run: Run, settings: Settings, logs: RunLogs) -> list[Card]:
    """Return the metrics at the top of the page."""
    seen = [int(r["iteration"]) for silo in run.silos for r in silo.rounds]
    done = max([*seen, *run.results], default=0)
    of = f" of {settings.iterations}" if settings.iterations else ""
    faults, warnings = total(logs.events, "fault"), total(logs.events, "warning")
    images = [count for count in (_images_of(run, silo) for silo in run.silos) if count]
    return [
        *_metric_card(run),
        Card("iterations done", f"{done}{of}", *_results(run, done)),
        Card("silos", str(len(run.silos)), f"{sum(images)} images" if images else ""),
        *_loss_card(run),
        Card("faults", str(faults), f"warnings: {warnings}", bad=faults > 0),
        *_time_card(logs),
    ]


def _results(run: Run, done: int) -> tuple[str, bool]:
    """Summarize the results of the iterations, and whether too many of them failed."""
    if not run.results:
        return "", False
    aggregated, failed = counts_of(run.results)
    return summary_of(aggregated, failed, done - aggregated - failed), has_failed(
        aggregated, failed
    )


def total(events: Sequence[Event], level: str) -> int:
    """Return the number of lines with a level."""
    return sum(event.count for event in events if event.level == level)


def losses(silos: Sequence[Silo]) -> list[list[str]]:
    """Return a row for each silo: steps, epochs, mean loss of the first, last and best epoch."""
    rows = []
    for silo in silos:
        numbers, means = silo.epoch_means()
        finite = means[np.isfinite(means)]
        best = number(finite.min(), 4) if finite.size else "-"
        first, last = number(means[0], 4), number(means[-1], 4)
        rate = f"{silo.rates[-1]:.3g}" if np.isfinite(silo.rates[-1]) else "-"
        rows.append([silo.title, str(silo.losses.size), str(numbers.size), first, last, best, rate])
    return rows


def round_means(silos: Sequence[Silo]) -> list[list[str]]:
    """Return a row for each silo: the means over its rounds."""
    rows = []
    for silo in silos:
        values = [*phase_seconds(silo.rounds).mean(axis=0)]
        values.append(np.mean([entry["round_s"] for entry in silo.rounds]))
        sizes = [_mean(silo.rounds, key) / 1e6 for key in ("bytes_up", "bytes_down")]
        failed = sum(entry.get("result", "aggregated") != "aggregated" for entry in silo.rounds)
        texts = [number(value, 2) for value in (*values, *sizes)]
        rows.append([silo.title, str(len(silo.rounds)), *texts, str(failed)])
    return rows


def rounds(silo: Silo) -> Table:
    """Return every round of a silo, or the last ones where there are too many."""
    rows = []
    for entry, phases in zip(silo.rounds, phase_seconds(silo.rounds)):
        seconds = [number(value, 2) for value in (*phases, entry["round_s"])]
        sizes = [number(_scaled(entry.get(k), 1e-6), 2) for k in ("bytes_up", "bytes_down")]
        memory_mb = number(_scaled(entry.get("peak_rss_mb"), 1), 0)
        head = [str(entry.get("result", "-")), str(entry["iteration"])]
        rows.append([*head, *seconds, *sizes, memory_mb])
    return Table(silo.title, [], rows[-MOST_ROWS:], max(0, len(rows) - MOST_ROWS))


def memory_rows(silos: Sequence[Silo]) -> list[list[str]]:
    """Return a row for each silo that records memory: GB after the first and the last round."""
    rows = []
    for silo in silos:
        peaks = [entry["peak_rss_mb"] for entry in silo.rounds if entry.get("peak_rss_mb")]
        if peaks:
            rows.append([silo.title, *(number(_scaled(p, 1e-3), 2) for p in (peaks[0], peaks[-1]))])
    return rows


def metrics(label: str, lines: Sequence[dict[str, Any]]) -> Table:
    """Return the metrics of one metrics.jsonl, with the classes of its last line."""
    keys = [key for key in METRICS if any(key in line for line in lines)]
    more = [key for key in ("images", "seconds") if any(key in line for line in lines)]
    rows = []
    for line in lines:
        figures = [number(_scaled(line.get(key), 1), 3) for key in keys]
        rows.append([str(line["iteration"]), *figures])
        rows[-1] += [number(_scaled(line.get(key), 1), 0) for key in more]
    return Table(
        label,
        ["iteration", *keys, *more],
        rows[-MOST_ROWS:],
        max(0, len(rows) - MOST_ROWS),
        str(lines[-1]["iteration"]),
        class_table(lines[-1]),
        confusion_table(lines[-1]),
        _threshold(lines[-1].get("confusion")),
    )


def _threshold(confusion: Any) -> str:
    """Return which detections count in a confusion table of metrics.jsonl."""
    known = confusion if isinstance(confusion, dict) else {}
    score, iou = (number(_scaled(known.get(key), 1), 2) for key in ("score", "iou"))
    return f"a score of at least {score} and an IoU of at least {iou}"


def number(value: float, digits: int) -> str:
    """Format a number as text; a dash for no number."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _scaled(value: Any, factor: float) -> float:
    return number_in(value) * factor


def _mean(entries: Sequence[dict[str, Any]], key: str) -> float:
    values = [_scaled(entry.get(key), 1) for entry in entries]
    return float(np.mean(values)) if values else float("nan")


def _images_of(run: Run, silo: Silo) -> int:
    count = number_in(run.statuses.get(silo.label, {}).get("images"))
    return int(count) if count > 0 else 0


def _loss_card(run: Run) -> list[Card]:
    """Return the mean over the silos of the first and the last epoch's mean loss."""
    means = [silo.epoch_means()[1] for silo in run.silos if len(silo.losses)]
    if not means:
        return []
    first, last = (np.mean([m[i] for m in means]) for i in (0, -1))
    text = f"{first:.3f} → {last:.3f}"
    return [Card("mean loss, first → last epoch", text, bad=not np.isfinite(last))]


def _metric_card(run: Run) -> list[Card]:
    evaluated = [lines[-1] for _, lines in run.evaluations]
    if not evaluated:
        return []
    latest = max(evaluated, key=lambda entry: entry["iteration"])
    ap, ap50 = (number(_scaled(latest.get(key), 1), 3) for key in ("AP", "AP50"))
    return [Card(f"AP after iteration {latest['iteration']}", ap, f"AP50 {ap50}")]


def _time_card(logs: RunLogs) -> list[Card]:
    if not (logs.first and logs.last):
        return []
    seconds = int((logs.last - logs.first).total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
    text = text if seconds >= 60 else f"{seconds} s"
    return [Card("duration", text, f"{logs.first} to {logs.last}")]


TEMPLATE = "report.html.j2"
MOST_EVENTS = 300
MOST_SILOS = 6  # with plots of their own
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """Describe an image on the page.

    Attributes:
        source: the whole file as a data URI.
        text: alternative text, for those who cannot see it.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Sample:
    """Describe one image of the samples.

    Attributes:
        name: its file's.
        classes: colour and counts of each class on it.
        panels: what stands above each drawn image, and the image.
    """

    name: str
    classes: list[tuple[str, str]]
    panels: list[tuple[str, Picture]]


@dataclass(frozen=True)
class Samples:
    """Hold images with detections for the page.

    Attributes:
        pictures: at least one.
        score: the threshold of the detections.
        source: origin of the detections.
    """

    pictures: Sequence[LabelledPicture]
    score: float
    source: str


def build_page(run: Run, samples: Samples | None = None) -> str:
    """Build the page of a run; it says what is missing.

    Raises:
        UserError: an image of the samples cannot be decoded.
    """
    settings, logs = read_settings(run.folder), read_logs(run)
    shown = most_serious(logs.events, MOST_EVENTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        # Make text printable: the page quotes logs, files and silos.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    ends = exit_states(run.folder)
    job = dict(settings.federation).get("fl_name") or run.folder.name
    return environment.get_template(TEMPLATE).render(
        title=f"{job}: report of a run",
        folder=run.folder,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        cards=cards(run, settings, logs),
        notes=[*run.notes, *settings.notes],
        settings=settings,
        exits=[(k, v.get("code", ""), v.get("reason", "")) for k, v in ends.items()],
        events=shown,
        hidden_events=len(logs.events) - len(shown),
        failed_starts=[(e.time or "unknown", e.role, e.text) for e in logs.failed_starts],
        faults=total(logs.events, "fault"),
        warnings=total(logs.events, "warning"),
        log_count=len(logs.paths),
        last_model=_last_model(run),
        **_curves(run),
        **_rounds(run),
        **_precision(run),
        **_samples(samples),
    )


def _curves(run: Run) -> dict[str, Any]:
    """Return the content of the loss section."""
    silos = [silo for silo in run.silos if len(silo.losses)]
    images = [_figure(epoch_figure(silos), "mean loss of each epoch, all silos")] if silos else []
    for number, silo in enumerate(silos[:MOST_SILOS]):
        images.append(_figure(step_figure(silo, number), f"loss of each step of {silo.title}"))
    return {
        "loss_images": images,
        "losses": losses(silos),
        "most_silos": MOST_SILOS,
        "more_silos": max(0, len(silos) - MOST_SILOS),
    }


def _rounds(run: Run) -> dict[str, Any]:
    """Return the content of the sections of seconds and memory."""
    silos = [silo for silo in run.silos if silo.rounds]
    seconds = [_figure(seconds_figure(s), f"seconds of {s.title}") for s in silos[:MOST_SILOS]]
    memory = memory_rows(silos)
    return {
        "phases": [name for name, _, _ in PHASES],
        "seconds_images": seconds,
        "round_means": round_means(silos),
        "rounds": [rounds(silo) for silo in silos[:MOST_SILOS]],
        "memory": memory,
        "memory_image": _figure(memory_figure(silos), "peak memory") if memory else None,
    }


def _precision(run: Run) -> dict[str, Any]:
    """Return the content of the section of AP."""
    given = run.evaluations[:MOST_SILOS]
    return {
        "metrics": [metrics(label, lines) for label, lines in given],
        "metrics_image": _figure(metrics_figure(given), "AP by iteration") if given else None,
    }


def _samples(samples: Samples | None) -> dict[str, Any]:
    """Return the content of the section of detections."""
    if samples is None:
        return {"detections": [], "detections_source": "", "key": (), "labelled": False}
    return {
        "detections": [_sample(picture, samples.score) for picture in samples.pictures],
        "detections_source": samples.source,
        "key": KEY,
        "labelled": samples.pictures[0].truth is not None,
    }


def _last_model(run: Run) -> str:
    """Return the newest checkpoint of a worker, relative to the run folder, or ""."""
    paths = [path for silo in run.silos for path in silo.folders[-1].glob("ckpt/*/*epoch.ckpt")]
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.relative_to(run.folder)) if newest else ""


def _figure(figure: Figure, text: str) -> Picture:
    return Picture(_data_uri("image/svg+xml", rendered(figure, "svg")), text)


def _sample(picture: LabelledPicture, score: float) -> Sample:
    """Encode an image with its boxes as JPEGs, a fifth of the size of PNG."""
    panels = []
    for panel in panels_of(picture, score):
        buffer = io.BytesIO()
        panel.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        title = "; ".join(panel.titles)
        source = _data_uri("image/jpeg", buffer.getvalue())
        panels.append((title, Picture(source, f"{picture.path.name}: {title}")))
    classes = [(colour(number), text) for number, text in class_lines(picture)]
    return Sample(picture.path.name, classes, panels)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
