"""Every key of the two default files does something, or is listed as one that does nothing."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import yaml

from src.job.job_config import NEUTRAL
from src.model_utils.config import DEFAULT_CONFIG, IDLE, KEYS, PROJECT_DIR
from src.model_utils.config_file import default_config_text

# It names all keys, whether or not anything reads them.
TABLE = "src/model_utils/config_keys.py"
JOB_TABLE = "src/job/job_config.py"


def words_of_the_code(*left_out: str) -> set[str]:
    """Attributes that are read, and whole texts, in all modules and scripts."""
    paths = [*PROJECT_DIR.glob("*.py"), *(PROJECT_DIR / "tools").glob("*.py")]
    paths += (PROJECT_DIR / "src").rglob("*.py")
    words = set()
    for path in paths:
        if path.relative_to(PROJECT_DIR).as_posix() in left_out:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                words.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return words


def test_every_key_of_detector_and_training_is_read_or_said_to_have_no_effect():
    unread = set(KEYS) - set(IDLE) - words_of_the_code(TABLE)
    assert not unread, f"nothing reads {sorted(unread)}: remove them, or move them to IDLE"


def test_a_default_is_a_value_that_the_key_takes():
    for name, key in KEYS.items():
        assert key.checked(name, key.default, "the table") == key.default


def test_the_file_next_to_the_scripts_is_the_table():
    text = (PROJECT_DIR / DEFAULT_CONFIG).read_text(encoding="utf-8")
    assert text == default_config_text(), "python tools/write_default_config.py writes it again"
    values = yaml.safe_load(text)
    assert values == {
        name: key.default for name, key in KEYS.items() if name not in IDLE and not key.follows
    }


def dotted(values: dict, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_the_federation_is_read_here_or_by_the_engine_or_refused():
    keys = set(dotted(yaml.safe_load((PROJECT_DIR / "default_yaml_config.yaml").read_text())))
    package = importlib.util.find_spec("mindspore_federated").submodule_search_locations[0]
    libraries = b"".join(path.read_bytes() for path in Path(package).rglob("libfederated*.so"))
    engine = {key for key in keys if key.encode() in libraries}
    assert "round.update_model_ratio" in engine, "the engine's library was not found"
    unread = keys - engine - set(NEUTRAL) - words_of_the_code(JOB_TABLE)
    assert not unread, f"neither this suite nor the engine reads {sorted(unread)}"
