"""Read the configuration of a run, as its report shows it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.job.job_record import FOLDER
from src.model_utils.config import default_values, read_yaml_documents
from src.reporting.run_folder import started_commands

# Keys that say most about a federation; the other keys come after them.
MAIN_KEYS = (
    "fl_name", "fl_iteration_num", "round.start_fl_job_threshold", "round.update_model_ratio",
    "round.start_fl_job_time_window", "round.update_model_time_window",
    "round.global_iteration_time_window", "aggregation.aggregation_type", "enable_ssl",
    "encrypt.encrypt_type", "distributed_cache.address",
)  # fmt: skip
MOST_ENTRIES = 20  # limit for a list that is shown completely
_SECRET = re.compile(r"password|passwd|passphrase|private_key$|token|url_prefix", re.IGNORECASE)


@dataclass
class Settings:
    """Hold what a run was started with.

    Attributes:
        federation: (key, value) of the federation's file, the main ones first.
        main: number of main ones.
        federation_source: that file, or "".
        detector: (key, value, default) of the keys that differ from the defaults.
        detector_source: the file that they are from, or "".
        commands: (role, command line).
        notes: what could not be read.
    """

    federation: list[tuple[str, str]]
    main: int
    federation_source: str
    detector: list[tuple[str, str, str]]
    detector_source: str
    commands: list[tuple[str, str]]
    notes: list[str]

    @property
    def iterations(self) -> int | None:
        """Return fl_iteration_num; None where no file has it."""
        text = dict(self.federation).get("fl_iteration_num", "")
        return int(text) if text.isdigit() else None


def read_settings(folder: Path) -> Settings:
    """Read the files that the run in `folder` was started with, where they still exist."""
    notes: list[str] = []
    commands = started_commands(folder)
    candidates = [folder / FOLDER / "yaml_config.yaml", folder / "default_yaml_config.yaml"]
    path = next((path for path in candidates if path.is_file()), None)
    flat = _flat(_document(path, notes)) if path else {}
    main = [key for key in MAIN_KEYS if key in flat]
    keys = main + [key for key in flat if key not in main]
    file = _config_path(commands)
    return Settings(
        federation=[(key, _shown(key, flat[key])) for key in keys],
        main=len(main),
        federation_source=str(path or ""),
        detector=_differing(file, notes) if file else [],
        detector_source=str(file or ""),
        commands=[(role, _command_line(words)) for role, words in commands.items()],
        notes=notes,
    )


def _config_path(commands: dict[str, list[str]]) -> Path | None:
    """Return the file of detector and training that the first worker was given."""
    for label, words in commands.items():
        if label.startswith("worker_"):
            for word in words:
                if word.startswith("--config_path="):
                    return Path(word.split("=", 1)[1])
    return None


def _differing(path: Path, notes: list[str]) -> list[tuple[str, str, str]]:
    defaults = default_values()
    return [
        (str(key), _shown(str(key), value), _shown(str(key), defaults.get(key)))
        for key, value in _document(path, notes).items()
        if value is not None and value != defaults.get(key)
    ]


def _document(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return read_yaml_documents(path)[0]
    except UserError as error:
        notes.append(str(error))
        return {}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys, joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def _shown(key: str, value: Any) -> str:
    """Format a value for the page: hide secrets, except that they are set; minutes for windows."""
    if _SECRET.search(key) and isinstance(value, str) and value:
        return "(set)"
    if key.endswith("_time_window") and isinstance(value, int):
        return f"{value} ms ({value / 60000:g} min)"
    if isinstance(value, list) and len(value) > MOST_ENTRIES:
        return f"{str(value[:4])[:-1]}, ...] ({len(value)} entries)"
    return str(value)


def _command_line(words: list[str]) -> str:
    hidden = [re.sub(r"=.+", "=(set)", w) if _SECRET.search(w.split("=")[0]) else w for w in words]
    return shlex.join(hidden)
