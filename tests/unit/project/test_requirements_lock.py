"""requirements.lock has what the requirements files pin, each package with its hashes."""

import re

import pytest

from src.model_utils.config import PROJECT_DIR

PIN = re.compile(r"(?m)^([A-Za-z][\w.-]*)==(\S+)")


def pins(file: str) -> dict[str, str]:
    """Package (in the lock's spelling) to version."""
    text = (PROJECT_DIR / file).read_text(encoding="utf-8")
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall(text)}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_lock_has_every_pin(file):
    wanted = pins(file)
    assert wanted
    locked = pins("requirements.lock")
    assert {name: locked.get(name) for name in wanted} == wanted, "run make lock"


def test_every_package_has_hashes():
    text = (PROJECT_DIR / "requirements.lock").read_text(encoding="utf-8")
    blocks = re.split(r"(?m)^(?=[A-Za-z][\w.-]*==)", text)[1:]
    assert len(blocks) > len(pins("requirements.txt"))
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
