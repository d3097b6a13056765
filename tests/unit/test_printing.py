"""Words from outside in what commands print: no line is forged and no terminal steered."""

from __future__ import annotations

import ast
import json
import logging

import pytest
from coco_files import coco_of, run_script, write_coco

from src.errors import StartError, run_command
from src.federated.replies import Outcome, Reply
from src.job.log_files import log_to_console, say
from src.model_utils.config import PROJECT_DIR
from src.printing import print as safe_print
from src.printing import print_json, printable

# Line breaks of all kinds, ESC, a C1 control, NUL, text turned round, half of a surrogate pair.
HOSTILE = "a\nerror: b\r\x1b[31m\x9b2J\0\x7f\u202e\u2028\u0085\x0b\udcff"
READABLE = "Klinik München, 医院 №1, Ελλάδα, مستشفى, 🐕"


def is_safe(text):
    return all(line.isprintable() for line in text.split("\n"))


def test_what_steers_is_escaped_and_what_is_read_stays():
    assert printable(HOSTILE).isprintable()
    assert printable("a\n\x1b\u202e") == r"a\n\x1b\u202e"
    assert printable(READABLE) == READABLE
    assert printable("a\tb\n", keep="\t") == "a\tb\\n"


def test_a_value_stays_in_its_line(capsys):
    safe_print(HOSTILE, "b", sep="\n")
    out = capsys.readouterr().out
    assert out.count("\n") == 2 and is_safe(out)


def test_json_is_safe_and_means_the_same(capsys):
    print_json({HOSTILE: [HOSTILE]})
    out = capsys.readouterr().out
    assert is_safe(out) and json.loads(out) == {HOSTILE: [HOSTILE]}


def test_lines_of_a_role_and_of_its_modules_stay_lines(capsys):
    log_to_console("worker_0")
    say("worker_0", f"joined {HOSTILE}", HOSTILE)
    logging.getLogger("src.some").warning("of %s", HOSTILE)
    out = capsys.readouterr().out
    assert is_safe(out) and len(out.splitlines()) == 3
    assert "worker_0] WARNING: of a\\n" in out


def test_a_servers_words_stay_in_one_line():
    reply = Reply(Outcome.REFUSED, f"no\n such silo {HOSTILE}")
    assert reply.reason.startswith("no such silo a error: b") and reply.reason.isprintable()


def test_an_error_of_several_lines_of_a_log_is_shown_safely(capsys):
    def main():
        raise StartError("worker_0 ended; its log ends:\n  \x1b[31mred", 1)

    with pytest.raises(SystemExit):
        run_command(main)
    err = capsys.readouterr().err
    assert err == "error: worker_0 ended; its log ends:\n  \\x1b[31mred\n"


def hostile_coco(folder):
    coco = coco_of(4)
    coco["categories"][0]["name"] = f"person{HOSTILE[:-1]}"
    coco["annotations"][-1]["category_id"] = 1
    coco["images"][0]["file_name"] = "\x1b[2Jx\n.jpg"
    write_coco(folder, coco, "all.json")


def test_splitting_says_names_of_categories_and_files_safely(tmp_path):
    hostile_coco(tmp_path)
    words = ("--json=all.json", "--num_shards=2", "--image_dir=all")
    ended = run_script("tools/split_coco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert is_safe(ended.stdout) and "\\x1b[31m" in ended.stdout
    assert not any(line.startswith("error") for line in ended.stdout.splitlines())


def test_converting_says_names_of_files_and_classes_safely(tmp_path):
    hostile_coco(tmp_path)
    (tmp_path / "all" / "\x1b[2Jx\n.jpg").write_bytes(b"no image")
    words = ("--instance_set=all.json", "--mindrecord_dir=mindrecord_0")
    ended = run_script("generate_mindrecord.py", *words, cwd=tmp_path)
    said = ended.stdout + ended.stderr
    assert is_safe(said) and "\\x1b[2Jx\\n.jpg" in said


def of_modules():
    """Name and syntax tree of every module and script."""
    for place in ("*.py", "tools/*.py", "src/**/*.py"):
        for path in PROJECT_DIR.glob(place):
            name = path.relative_to(PROJECT_DIR).as_posix()
            yield name, list(ast.walk(ast.parse(path.read_text("utf-8"))))


def test_every_module_prints_through_the_one_that_escapes():
    raw = []
    for name, nodes in of_modules():
        imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "src.printing"]
        safe = {alias.name for node in imports for alias in node.names}
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        wrong = {"print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer"} & (
            used - safe
        )
        raw += [f"{name}: {one}" for one in wrong if name != "src/printing.py"]
    assert not raw, "from src.printing import print"
