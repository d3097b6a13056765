"""The shape of the code: which way imports go, and how long modules, functions and scripts are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from src.model_utils.config import PROJECT_DIR

# From the ground up. A package or module imports what is below it, and itself. The part of a name
# that is written out here counts: src.evaluation.metrics is not with the rest of src.evaluation.
LAYERS = (
    ("src.files", "src.printing"),
    ("src.errors", "src.progress"),
    ("src.output",),
    ("src.model_utils",),
    ("src.security",),
    # Checkpoints of the detector, and foreign files that become one.
    ("src.weights",),
    # What a job is, to all who start it, take part or look on.
    ("src.job",),
    # The detector and the data; neither knows the other.
    ("src.FasterRcnn", "src.data", "src.lr_schedule"),
    ("src.dataset",),
    # COCO's figures of any boxes, and upstream's names for them.
    ("src.evaluation.metrics",),
    ("src.util",),
    # Measuring a network; of its figures the federation writes a line.
    ("src.evaluation",),
    ("src.federated",),
    ("src.network_define",),
    ("src.training",),
    ("src.reporting",),
    # A detector for other programs.
    ("src.export",),
    # What the tools do after parsing.
    ("src.commands",),
    ("src.launch",),
    ("src.convert_checkpoint",),
    ("src.benchmarks",),
    ("scripts",),
)
STRANGERS = (("src.FasterRcnn", "src.federated"), ("src.FasterRcnn", "src.data"))
# The parts of the configuration are behind one door.
BEHIND_CONFIG = "src.model_utils.config_"

MODULE_LINES, FUNCTION_LINES, SCRIPT_LINES = 500, 60, 120
LONGER_MODULES: dict[str, str] = {}
LONGER_SCRIPTS = {
    "tools/make_certificates.py": "its help shows certificates with and without kits",
    "test_fl_fasterrcnn.py": "the entry of four roles, as upstream's",
    "tools/status.py": "a command with five words of its own",
}

SCRIPTS = sorted([*PROJECT_DIR.glob("*.py"), *(PROJECT_DIR / "tools").glob("*.py")])
MODULES = sorted((PROJECT_DIR / "src").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT_DIR).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in [*SCRIPTS, *MODULES]}


def imported(path: Path) -> Iterator[str]:
    """Modules of this project that a module imports, in its functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # A name is a module of its own, or stands in the one before it.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append(whole if whole in NAMES else node.module)
        yield from (name for name in found if name in NAMES)


IMPORTS = {name: set(imported(path)) - {name} for name, path in NAMES.items()}


def layer_of(module: str) -> tuple[int, str]:
    """(height, part) of a module; the longest name that fits counts."""
    if not module.startswith("src"):
        return len(LAYERS) - 1, "scripts"
    fits = [
        (len(part), height, part)
        for height, parts in enumerate(LAYERS)
        for part in parts
        if module == part or module.startswith(f"{part}.")
    ]
    assert fits, f"{module} has no place in LAYERS"
    _, height, part = max(fits)
    return height, part


def goes_down(importer: str, module: str) -> bool:
    (height, part), (below, other) = layer_of(importer), layer_of(module)
    same_package = part.split(".")[:2] == other.split(".")[:2]
    return height > below or (height == below and same_package)


def reached_from(part: str) -> set[str]:
    """All modules that importing any module of `part` brings in."""
    reached, to_do = set(), [name for name in NAMES if within(name, part)]
    while to_do:
        name = to_do.pop()
        if name not in reached:
            reached.add(name)
            to_do += IMPORTS[name]
    return reached


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def test_imports_go_down_the_layers():
    up = {
        (importer, module)
        for importer, modules in IMPORTS.items()
        for module in modules
        if not goes_down(importer, module)
    }
    assert not up


def test_no_module_imports_itself_by_a_detour():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers_do_not_meet_even_by_a_detour(one, other):
    assert not [name for name in reached_from(one) if within(name, other)]
    assert not [name for name in reached_from(other) if within(name, one)]


def test_the_configuration_is_imported_by_its_one_name():
    outside = {
        name: sorted(m for m in modules if m.startswith(BEHIND_CONFIG))
        for name, modules in IMPORTS.items()
        if not within(name, "src.model_utils")
    }
    assert not {name: modules for name, modules in outside.items() if modules}


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("paths", "limit", "longer"),
    [(MODULES, MODULE_LINES, LONGER_MODULES), (SCRIPTS, SCRIPT_LINES, LONGER_SCRIPTS)],
    ids=["modules", "scripts"],
)
def test_length(paths, limit, longer):
    lengths = {path.relative_to(PROJECT_DIR).as_posix(): lines_of(path) for path in paths}
    too_long = {name: lines for name, lines in lengths.items() if lines > limit}
    assert set(too_long) == set(longer), f"of more than {limit} lines: {too_long}"


def test_functions_fit_on_a_page():
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for name, path in NAMES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long
