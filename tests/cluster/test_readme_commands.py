"""The commands of README.md and docs/own_data.md, one after the other: who copies them succeeds.

Those of README's small job are typed unchanged but for the ports; those of the tutorial with
synthetic data and a tiny detector; those of the other page with fewer iterations. What the
tutorial's commands do `test_tutorial.py` tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import FINISH, TINY, end, processes_of, succeed, wait_for, write_job
from launched_job import JobFolder
from ports import free_port_range
from readme_page import command_lines, section

from src.job.addresses import listens
from src.launch.redis_store import redis_binary
from src.model_utils.config import PROJECT_DIR

pytestmark = pytest.mark.slow  # two whole federations, and reading them: 1 to 4 minutes each

ITERATIONS = 3  # README's federation file has 30
OWN_DATA = PROJECT_DIR / "docs" / "own_data.md"
# Of the pages' text, what is another here, with the reason.
SUBSTITUTIONS = (
    ("python ", "python {scripts}/", "the scripts are called from a silo's folder, by their path"),
    ("=2345", "={redis}", "a free port"),
    ("--port 2345", "--port {redis}", "a free port"),
    ("127.0.0.1:18019", "127.0.0.1:{scheduler}", "a free port"),
    ("127.0.0.1:6668", "127.0.0.1:{server}", "free ports"),
    (
        "_sched.py --fl",
        "_sched.py --scheduler_manage_address=127.0.0.1:{scheduler} --fl",
        "likewise",
    ),
    ("_server.py --fl", "_server.py --http_server_address=127.0.0.1:{server} --fl", "likewise"),
    ("_worker.py --fl", "_worker.py --http_server_address=127.0.0.1:{server} --fl", "likewise"),
    (
        "preflight.py --c",
        "preflight.py --scheduler_manage_address=127.0.0.1:{scheduler} "
        "--http_server_address=127.0.0.1:{server} --c",
        "likewise",
    ),
    ("_iteration_num=80", f"_iteration_num={ITERATIONS}", "the training takes half an hour"),
    (" configs/redis.conf", " {scripts}/configs/redis.conf", "Redis knows no other folder"),
    ("=instances_val2017.json", "=annotations/instances_val2017.json", "where it is drawn to"),
)
# It ends the job and Redis, so it comes when all has been looked at.
LAST = "python finish_cross_silo_fasterrcnn.py"


SMALL = ("Step by step, without COCO",)
TUTORIAL = ("The tutorial's steps", "Watching it")


def readme_lines(headings):
    """The lines of these sections that are run, in README's order but for the last."""
    text = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")
    lines = [line for heading in headings for line in command_lines(section(text, heading))]
    return sorted(lines, key=lambda line: line.startswith(LAST))


def own_data_lines():
    return command_lines(OWN_DATA.read_text(encoding="utf-8"))


class Reader:
    """Somebody with a shell in an empty folder who types what README says."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port_range(8)
        self.redis = None
        self.said: dict[str, str] = {}
        write_job(folder, self.port, ITERATIONS)

    def read(self, lines: list[str]) -> None:
        """Type every line."""
        for line in lines:
            print(f"$ {self.typed(line)}", flush=True)
            if line.startswith(LAST):
                JobFolder(self.folder).wait_for_end()
            self.type(line)

    def prepare(self) -> None:
        """COCO's layout with enough drawn images for a hundred shards; a tiny detector."""
        words = ["--out=.", "--images=300", "--val_images=4", "--width=96", "--height=64"]
        succeed(self.folder, "tools/make_demo_coco.py", *words)
        settings = TINY.read_text() + "test_score_thr: 0.001  # so that it finds something\n"
        settings += "keep_checkpoint_max: 1  # as upstream's file has it\n"
        (self.folder / "default_config.yaml").write_text(settings)

    def typed(self, line: str) -> str:
        for text, other, _ in SUBSTITUTIONS:
            line = line.replace(text, other)
        ports = {"redis": self.port, "scheduler": self.port + 1, "server": self.port + 2}
        return line.format(scripts=PROJECT_DIR, **ports)

    def type(self, line: str) -> None:
        if line.startswith("redis-server"):
            self.redis = self.start(line, stdout=subprocess.DEVNULL)
            wait_for(lambda: listens("127.0.0.1", self.port), what="Redis")
        elif "grep" in line:
            # The workers are training; the reader looks until there is a line.
            wait_for(lambda: self.call(line) == 0, timeout=240, what=f"{line}: no line")
        else:
            code = self.call(line)
            assert code == 0, f"{self.typed(line)}\nexit code {code}\n{self.said[line]}"

    def call(self, line: str) -> int:
        process = self.start(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            self.said[line], _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode

    def start(self, line: str, **streams) -> subprocess.Popen:
        """A shell with the installation's programs, which becomes a command that stands alone."""
        folders = [Path(sys.executable).parent, Path(redis_binary()).parent]
        path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
        words = ["bash", "-c", self.typed(line) if "&&" in line else f"exec {self.typed(line)}"]
        return subprocess.Popen(
            words, cwd=self.folder, env={**os.environ, "PATH": path}, text=True, **streams
        )

    def leave(self) -> None:
        succeed(self.folder, FINISH, f"--redis_port={self.port}")
        if self.redis:
            end(self.redis)
        assert not processes_of(self.folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """One who has typed the tutorial's steps, each command ending as README says."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    reader.prepare()
    try:
        reader.read(readme_lines(TUTORIAL))
        yield reader
    finally:
        reader.leave()


def said_by(reader, start):
    return next(text for line, text in reader.said.items() if line.startswith(start))


def test_the_tables_are_about_lines_that_are_there():
    lines = [*readme_lines(SMALL + TUTORIAL), *own_data_lines()]
    assert own_data_lines()[-1].startswith(LAST)
    for before, _, _ in SUBSTITUTIONS:
        assert any(before in line for line in lines), before


def test_the_small_job_trains_detects_and_leaves_nothing_running(tmp_path):
    reader = Reader(tmp_path)
    try:
        reader.read(readme_lines(SMALL))
        assert f"{ITERATIONS} of {ITERATIONS}" in said_by(reader, "python tools/status.py")
        assert (tmp_path / "detected" / "contact_sheet.png").is_file()
        assert f"stopped Redis at 127.0.0.1:{reader.port}" in said_by(reader, LAST)
    finally:
        reader.leave()


def test_the_walk_with_own_images_ends_with_a_measured_detector(tmp_path):
    reader = Reader(tmp_path)
    proposed = tmp_path / "our_config.yaml"
    lines = own_data_lines()
    configured = next(n for n, line in enumerate(lines) if "--merge" in line) + 1
    try:
        reader.read(lines[:configured])
        # Few steps, so that the walk takes minutes; each iteration is evaluated.
        few = {"sync_frequency": 10, "warmup_step": 5, "interval": 1}
        text = proposed.read_text()
        for key, value in few.items():
            text, count = re.subn(rf"(?m)^{key}: .*", f"{key}: {value}", text)
            assert count == 1, key
        proposed.write_text(text)
        reader.read(lines[configured:])
        cost = said_by(reader, "python tools/preflight.py")
        assert re.search(r"(?m)^PASS +time .*s a step", cost), cost
        assert f"{ITERATIONS} of {ITERATIONS}" in said_by(reader, "python tools/status.py")
        found = said_by(reader, "python tools/evaluate.py")
        assert all(name in found for name in ("RBC", "WBC", "Platelets"))
        page = (tmp_path / "report.html").read_text()
        assert "classes after iteration" in page
        assert f"stopped Redis at 127.0.0.1:{reader.port}" in said_by(reader, LAST)
    finally:
        reader.leave()


def test_each_command_is_run_and_in_order(reader):
    assert len(reader.said) == len(readme_lines(TUTORIAL)) - 1  # Redis says nothing to anybody
    assert len(reader.said) >= 12


def test_the_grep_shows_steps_as_readme_does(reader):
    line = said_by(reader, "cd worker_0").splitlines()[0]
    assert re.match(r"worker\.log:\d+:.*\[worker_0\]epoch: 1 step: 1 total_loss: ", line)


def test_what_readme_promises_of_each_is_there(reader):
    folder = reader.folder
    for name in (
        "datasets/coco_split/split_100/train_99.json",
        "datasets/coco_split/split_100/mindrecord_1/FasterRcnn.mindrecord.db",
        f"worker_1/ckpt/mindrecord_1/mindrecord_1-fast-rcnn-{ITERATIONS - 1}epoch.ckpt",
        "plots/worker_0_step_loss.svg",
        "report.html",
        "found.json",
        "detections/contact_sheet.png",
        "detected/contact_sheet.png",
        "faster_rcnn.onnx",
    ):
        assert (folder / name).is_file(), name
    log = (folder / "scheduler" / "scheduler.log").read_text()
    assert "Scheduler started successfully." in log


def test_upstreams_limit_deletes_no_checkpoint_and_is_named(reader):
    found = list((reader.folder / "worker_0" / "ckpt" / "mindrecord_0").glob("*epoch.ckpt"))
    assert len(found) == ITERATIONS > 1
    note = "keep_checkpoint_max: 1 deletes nothing here"
    assert note in said_by(reader, "python run_cross_silo_fasterrcnn_worker.py")
    assert (reader.folder / "worker_0" / "worker.log").read_text().count(note) == 1


def test_status_watches_until_the_end_and_finish_leaves_nothing(reader):
    assert f"{ITERATIONS} of {ITERATIONS}" in said_by(reader, "python tools/status.py")
    assert reader.redis.wait(timeout=10) == 0
    assert f"stopped Redis at 127.0.0.1:{reader.port}" in said_by(reader, LAST)
