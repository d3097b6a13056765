"""Nothing in the suite executes what it reads: no pickles, no evaluated text, no shell strings.

One module reads pickles, those of PyTorch's state dicts, with an unpickler that looks every name up
in a table of its own. The scan holds it to that; what it refuses is tested in test_torch_file.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.model_utils.config import PROJECT_DIR

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load",
    "yaml.full_load_all", "numpy.loads", "pandas.read_pickle",
}  # fmt: skip
PICKLE_READER = PROJECT_DIR / "src" / "weights" / "torch_file.py"
FILES = sorted(
    path
    for pattern in ("*.py", "src/**/*.py", "tools/**/*.py")
    for path in PROJECT_DIR.glob(pattern)
)


def faults(source: str) -> list[str]:
    """What `source` has of the things that may execute data, with the line of each."""
    return [f"line {node.lineno}: {fault}" for node, fault in _faults(ast.parse(source))]


def _faults(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            for name in names:
                if name.split(".")[0] in MODULES or name in CALLS:
                    yield node, f"import of {name}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).replace("np.", "numpy.").replace("pd.", "pandas.")
            if name in BUILTINS or name in CALLS:
                yield node, f"call of {name}"
            for keyword in node.keywords:
                # Anything but a plain False might be true.
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "allow_pickle") and not is_false:
                    yield node, f"{keyword.arg} in a call of {name}"


def unrestricted(source: str) -> list[str]:
    """Uses of pickle in `source` but as the base of classes that decide on names themselves."""
    tree = ast.parse(source)
    bases = set()
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
        methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
        if {"find_class", "persistent_load"} <= methods:
            bases |= {id(base) for base in node.bases if ast.unparse(base) == "pickle.Unpickler"}
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle")
        or (isinstance(node, (ast.Import, ast.ImportFrom)) and "pickle" in ast.unparse(node))
        if id(node) not in bases
        and ast.unparse(node) not in ("import pickle", "import pickletools")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT_DIR)))
def test_executes_nothing_that_it_reads(path: Path):
    source = path.read_text(encoding="utf-8")
    found = faults(source)
    if path == PICKLE_READER:
        assert [fault.split(": ")[1] for fault in found] == ["import of pickle"]
        found = unrestricted(source)
        assert "super().find_class" not in source
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "import pickle as p",
        "import pickle\nload = pickle.load",
        "import pickle\nclass A(pickle.Unpickler):\n    def persistent_load(self, pid): pass",
    ],
)
def test_the_reader_of_pickles_may_not(source):
    assert unrestricted(source)


def test_the_scan_covers_scripts_tools_and_packages():
    names = {str(path.relative_to(PROJECT_DIR)) for path in FILES}
    assert {"test_fl_fasterrcnn.py", "tools/evaluate.py", "src/weights/pretrained.py"} <= names


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from os import system",
        "import os; os.system('ls')",
        "eval(text)",
        "exec(text)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run('ls', shell=True)",
        "subprocess.run(words, shell=wanted)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_scan_finds(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source", ["yaml.safe_load(text)", "re.compile(text)", "model.eval()", "run(x, shell=False)"]
)
def test_the_scan_passes(source):
    assert not faults(source)
