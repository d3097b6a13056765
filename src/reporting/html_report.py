"""One HTML page that tells a run: no script, no outside reference, readable without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from src.job.job_record import exit_states
from src.printing import printable
from src.reporting import report_tables as tables
from src.reporting.detection_pictures import picture_of
from src.reporting.detection_results import LabelledPicture
from src.reporting.log_events import most_serious, read_logs
from src.reporting.loss_plots import epoch_figure, step_figure
from src.reporting.plot_style import rendered
from src.reporting.round_plots import PHASES, memory_figure, metrics_figure, seconds_figure
from src.reporting.run_folder import Run
from src.reporting.run_settings import read_settings

TEMPLATE = "report.html.j2"
MOST_EVENTS = 300
MOST_SILOS = 6  # with figures of their own
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        source: the whole file as a data URI.
        text: what it shows, for those who cannot see it.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Samples:
    """Images with detections for the page.

    Attributes:
        pictures: at least one.
        score: the threshold of the detections.
        source: where they are from.
    """

    pictures: Sequence[LabelledPicture]
    score: float
    source: str


def build_page(run: Run, samples: Samples | None = None) -> str:
    """The page of a run; what is missing is said in it.

    Raises:
        UserError: an image of the samples does not decode.
    """
    settings, logs = read_settings(run.folder), read_logs(run)
    shown = most_serious(logs.events, MOST_EVENTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        # Its words are those of logs, files and silos.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    ends = exit_states(run.folder)
    job = dict(settings.federation).get("fl_name") or run.folder.name
    return environment.get_template(TEMPLATE).render(
        title=f"{job}: report of a run",
        folder=run.folder,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        cards=tables.cards(run, settings, logs),
        notes=[*run.notes, *settings.notes],
        settings=settings,
        exits=[(k, v.get("code", ""), v.get("reason", "")) for k, v in ends.items()],
        events=shown,
        hidden_events=len(logs.events) - len(shown),
        faults=tables.total(logs.events, "fault"),
        warnings=tables.total(logs.events, "warning"),
        log_count=len(logs.paths),
        last_model=_last_model(run),
        **_curves(run),
        **_rounds(run),
        **_precision(run),
        **_samples(samples),
    )


def _curves(run: Run) -> dict[str, Any]:
    """The loss section."""
    silos = [silo for silo in run.silos if len(silo.losses)]
    images = [_figure(epoch_figure(silos), "mean loss of each epoch, all silos")] if silos else []
    for number, silo in enumerate(silos[:MOST_SILOS]):
        images.append(_figure(step_figure(silo, number), f"loss of each step of {silo.label}"))
    return {
        "loss_images": images,
        "losses": tables.losses(silos),
        "most_silos": MOST_SILOS,
        "more_silos": max(0, len(silos) - MOST_SILOS),
    }


def _rounds(run: Run) -> dict[str, Any]:
    """The sections of seconds and memory."""
    silos = [silo for silo in run.silos if silo.rounds]
    seconds = [_figure(seconds_figure(s), f"seconds of {s.label}") for s in silos[:MOST_SILOS]]
    memory = tables.memory(silos)
    return {
        "phases": [name for name, _, _ in PHASES],
        "seconds_images": seconds,
        "round_means": tables.round_means(silos),
        "rounds": [tables.rounds(silo) for silo in silos[:MOST_SILOS]],
        "memory": memory,
        "memory_image": _figure(memory_figure(silos), "peak memory") if memory else None,
    }


def _precision(run: Run) -> dict[str, Any]:
    """The section of AP."""
    given = run.evaluations[:MOST_SILOS]
    return {
        "metrics": [tables.metrics(label, lines) for label, lines in given],
        "metrics_image": _figure(metrics_figure(given), "AP by iteration") if given else None,
    }


def _samples(samples: Samples | None) -> dict[str, Any]:
    """The section of detections."""
    if samples is None:
        return {"detections": [], "detections_source": ""}
    images = [_photograph(picture, samples.score) for picture in samples.pictures]
    return {"detections": images, "detections_source": samples.source}


def _last_model(run: Run) -> str:
    """The newest checkpoint of a worker, relative to the run folder; "" where there is none."""
    paths = [path for silo in run.silos for path in silo.folders[-1].glob("ckpt/*/*epoch.ckpt")]
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.relative_to(run.folder)) if newest else ""


def _figure(figure: Figure, text: str) -> Picture:
    return Picture(_data_uri("image/svg+xml", rendered(figure, "svg")), text)


def _photograph(picture: LabelledPicture, score: float) -> Picture:
    """An image with its boxes as JPEG, a fifth of the size of PNG."""
    image = picture_of(picture, score)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    text = f"{picture.path.name}: labelled objects and detections"
    return Picture(_data_uri("image/jpeg", buffer.getvalue()), text)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
