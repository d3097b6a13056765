"""The page of a run: complete, self-contained, and safe whatever the files say."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
from coco_files import coco_of, write_coco
from commands import refused, succeed
from PIL import Image
from run_folders import own_line, stamp, write_metrics, write_rounds, write_worker

from src.job.job_start import note_start
from src.reporting import html_report
from src.reporting.html_report import Card, build_page, cards
from src.reporting.log_events import read_logs
from src.reporting.plots import phase_seconds, seconds_figure
from src.reporting.run_folder import read_run
from src.reporting.run_settings import read_settings

SECTIONS = ["precision", "detections", "curves", "configuration", "seconds", "memory", "events"]


class Page(HTMLParser):
    """What a test asks of a page: tags, references, headings' ids, text, rows of tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.words, self.rows = [], [], [], [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value)
            if name == "id" and tag == "h2":
                self.ids.append(value)

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, text):
        if text.strip():
            self.words.append(text.strip())
            if self.in_cell:
                self.rows[-1][-1] = (self.rows[-1][-1] + " " + text.strip()).strip()

    @property
    def text(self):
        return " ".join(self.words)


@pytest.mark.parametrize(
    ("results", "words", "bad"),
    [
        (["aggregated", "lost", "missed"], "2 of 3 iterations aggregated, 1 failed", False),
        (["lost", "lost", "aggregated"], "1 of 3 iterations aggregated, 2 failed", True),
        (["aggregated"] * 3, "3 of 3 iterations aggregated", False),
    ],
)
def test_the_first_figure_tells_how_many_iterations_failed(tmp_path, results, words, bad):
    worker = write_worker(tmp_path / "worker_0", [[4.0]] * 3)
    rounds = [{"iteration": n, "upload_s": 1.0, "wait_s": 1.0, "download_s": 1.0, "round_s": 9.0}
              for n in (1, 2, 3)]  # fmt: skip
    lines = [json.dumps({**line, "result": one}) for line, one in zip(rounds, results)]
    (worker / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    assert first_card(tmp_path) == Card("iterations done", "3", words, bad)
    # What the servers have written counts for more.
    (tmp_path / "server_0").mkdir()
    entries = [{"currentIteration": n, "iterationResult": "fail"} for n in (1, 2)]
    (tmp_path / "server_0" / "metrics.json").write_text("\n".join(map(json.dumps, entries)))
    words = "0 of 2 iterations aggregated, 2 failed (of 1 more nothing is known)"
    assert first_card(tmp_path) == Card("iterations done", "3", words, bad=True)


def first_card(folder):
    run = read_run(folder)
    return cards(run, read_settings(folder), read_logs(run))[0]


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(build_page(read_run(write_run(tmp_path_factory.mktemp("page") / "run"))))


def write_run(folder):
    """A run of two silos with everything that a run can leave."""
    for number in range(2):
        more = [own_line(9, "worker", "WARNING: <script>alert('x')</script> & \"more\"")]
        worker = write_worker(folder / f"worker_{number}", [[4.0, 2.0], [1.0, 1.0]], more=more)
        write_rounds(worker, [1, 2])
        write_metrics(worker, [0.125, 0.25])
    (folder / "default_yaml_config.yaml").write_text(
        "fl_name: Clinic\nfl_iteration_num: 9\nround:\n  start_fl_job_time_window: 600000\n"
        "client:\n  http_url_prefix: /k3y7-k3y7-k3y7_k3y7/\n"
    )
    state = folder / ".federation"
    for name in ("specs", "status"):
        (state / name).mkdir(parents=True)
    config = folder / "mine.yaml"
    config.write_text("img_width: 320\nbatch_size: 4\ncoco_classes: [background, dog]\n")
    argv = ["python", "test_fl_fasterrcnn.py", f"--config_path={config}", "--key_password=secret"]
    argv += ["--silo_name=clinic"]
    (state / "specs" / "worker_0.json").write_text(json.dumps({"argv": argv}))
    (state / "status" / "worker_0.exit.json").write_text('{"code": 1, "reason": "ended"}')
    (state / "status" / "worker_0.json").write_text('{"images": 12}')
    return folder


def test_a_page_needs_nothing_from_outside_and_runs_nothing(page):
    inside = [ref for ref in page.references if ref.startswith(("data:image/", "#"))]
    assert len(inside) == len(page.references) > len(SECTIONS)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert page.ids == SECTIONS
    assert [ref[1:] for ref in page.references if ref[0] == "#"] == SECTIONS


def test_a_page_tells_the_run(page):
    assert "Clinic: report of a run" in page.text
    assert ["fl_iteration_num", "9"] in page.rows
    assert ["round.start_fl_job_time_window", "600000 ms (10 min)"] in page.rows
    assert ["img_width", "320", "1280"] in page.rows
    names = "['background', 'person', 'bicycle', 'car', ...] (81 entries)"
    assert ["coco_classes", "['background', 'dog']", names] in page.rows
    assert not [row for row in page.rows if row[0] == "batch_size"]
    row = ["worker_0 (clinic)", "4", "2", "3.0000", "1.0000", "1.0000", "0.002"]
    assert row in page.rows
    seconds = ["3.50", "2.00", "3.00", "1.00", "0.50", "10.00", "2.00", "1.00"]
    assert ["worker_1", "2", *seconds, "0"] in page.rows
    assert ["aggregated", "2", *seconds, "1500"] in page.rows
    assert ["worker_0 (clinic)", "1.50", "1.50"] in page.rows
    assert ["2", "0.250", "0.500"] in page.rows
    assert ["dog <b>", "0.250"] in page.rows and ["cat", "-"] in page.rows
    assert ["worker_0", "1", "ended"] in page.rows
    assert "2 of 9" in page.text and "12 images" in page.text


def test_what_files_say_is_text_and_secrets_are_not_told(page):
    events = [row for row in page.rows if len(row) == 5 and row[2] == "warning"]
    assert [row[1] for row in events] == ["worker_0", "worker_1"]
    assert events[0][3] == "<script>alert('x')</script> & \"more\""
    assert "--key_password=(set)" in page.text and "=secret" not in page.text
    assert ["client.http_url_prefix", "(set)"] in page.rows and "k3y7" not in page.text


def test_a_start_that_failed_before_the_run_is_no_fault_of_it(tmp_path):
    note_start(tmp_path)
    write_worker(tmp_path / "worker_0", [[1.0]])
    failed = tmp_path / "worker_0.1"
    failed.mkdir()
    end = own_line(-60, "worker_0", "ended; exit code 2")
    (failed / "worker.log").write_text(f"error: val_set x.json: no such file\n{end}\n")
    page = Page(build_page(read_run(tmp_path)))
    assert "Starts that failed before" in page.text
    assert [stamp(-60), "worker_0.1", "val_set x.json: no such file"] in page.rows
    assert "None in 1 logs" in page.text


def test_what_logs_say_is_shown_without_what_turns_text_round(run_folder):
    with (run_folder / "worker_0" / "worker.log").open("a", encoding="utf-8") as log:
        log.write("error: no silo x\u202eevil\x1b[31m 医院\n")
    text = build_page(read_run(run_folder))
    assert r"no silo x\u202eevil\x1b[31m 医院" in text
    assert "\u202e" not in text and "\x1b" not in text


def test_a_page_of_a_run_that_has_nothing_yet_says_so(tmp_path):
    (tmp_path / "worker_0").mkdir()
    page = Page(build_page(read_run(tmp_path)))
    assert page.ids == SECTIONS
    for said in (
        "No federation file",
        "does not record the commands",
        "No loss line",
        "No metrics.jsonl",
        "No rounds.jsonl",
        "No memory is recorded",
        "tools/evaluate.py --json=ANNOTATIONS.json",
        "None in 0 logs",
    ):
        assert said in page.text, said


def test_files_that_are_broken_are_notes_on_the_page(run_folder):
    (run_folder / "default_yaml_config.yaml").write_text("fl_name: [\n")
    (run_folder / ".federation" / "status" / "worker_0.exit.json").write_text("{")
    with (run_folder / "worker_1" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration"')
    page = Page(build_page(read_run(run_folder)))
    assert "default_yaml_config.yaml, line" in page.text and "not valid YAML" in page.text
    assert "metrics.jsonl: line 3 is left out" in page.text


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e308", "NaN", '"x"', "[" * 50_000, "true"])
def test_numbers_that_no_run_has_leave_a_gap_or_are_noted(run_folder, value):
    worker, whole = run_folder / "worker_0", {"iteration": 7, "AP": 0.5, "seconds": 1}
    with (worker / "metrics.jsonl").open("a") as file:
        for key in whole:
            file.write(json.dumps({**whole, key: "@"}).replace('"@"', value) + "\n")
    with (worker / "worker.log").open("a") as file:
        file.write(f"[2026-11-22 08:00:00][worker_0]epoch: {'9' * 5000} step: 1 total_loss: 5.2\n")
    (run_folder / ".federation" / "status" / "worker_0.json").write_text(f'{{"images": {value}}}')
    assert "metrics.jsonl: line" in Page(build_page(read_run(run_folder))).text


def test_events_beyond_the_cap_are_counted(run_folder, monkeypatch):
    monkeypatch.setattr(html_report, "MOST_EVENTS", 1)
    assert "1 more are left out" in Page(build_page(read_run(run_folder))).text


def test_the_bars_of_a_round_add_up_to_it(run_folder):
    silo = read_run(run_folder).silos[0]
    assert phase_seconds(silo.rounds).tolist() == [[3.5, 2, 3, 1, 0.5]] * 2
    (axes,) = seconds_figure(silo).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    assert tops == [10, 10]
    assert axes.get_ylabel() == "seconds" and "worker_0" in axes.get_title()


def test_rounds_of_a_silo_that_missed_some_stand_at_their_iteration(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[1.0]])
    write_rounds(folder, [3, 7])
    (axes,) = seconds_figure(read_run(tmp_path).silos[0]).axes
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.containers[0]] == [3, 7]


def test_thousands_of_rounds_are_drawn_as_means_and_listed_up_to_a_cap(tmp_path):
    folder = write_worker(tmp_path / "worker_0", [[1.0]])
    write_rounds(folder, range(1, 2001))
    run = read_run(tmp_path)
    (axes,) = seconds_figure(run.silos[0]).axes
    assert axes.get_title().startswith("worker_0: seconds of mean of 4 rounds")
    assert (axes.patches[-1].get_data().values == 10).all()
    page = Page(build_page(run))
    assert "1800 earlier rounds are left out" in page.text
    assert len([row for row in page.rows if row[0] == "aggregated"]) == 200


def test_the_federations_file_of_the_launchers_comes_before_the_users(run_folder):
    path = run_folder / ".federation" / "yaml_config.yaml"
    path.write_text("fl_iteration_num: 4\n")
    settings = read_settings(run_folder)
    assert settings.iterations == 4 and settings.federation_source == str(path)


def test_the_command_writes_a_page_with_the_detections_given(run_folder, tmp_path):
    write_coco(tmp_path, coco_of(3), "val.json")
    box = {"image_id": 2, "category_id": 18, "bbox": [4, 4, 20, 20], "score": 0.9}
    (tmp_path / "results.json").write_text(json.dumps([box]))
    flags = ("--results=results.json", "--json=val.json", "--images=2", "--out=page.html")
    printed = succeed(tmp_path, "tools/report.py", "run", *flags)
    assert printed.split() == [str(tmp_path / "page.html")]
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    kind = "data:image/jpeg;base64,"
    samples = [ref for ref in page.references if ref.startswith(kind)]
    assert len(samples) == 4  # labels and detections of two images
    for sample in samples:
        image = Image.open(io.BytesIO(base64.b64decode(sample[len(kind) :])))
        image.load()
        assert image.width > 500
    assert str(tmp_path / "results.json") in page.text
    worst_first = ["dog: 0 found, 1 missed, 0 false", "dog: 1 found, 0 missed, 0 false"]
    places = [page.words.index(words) for words in worst_first]
    assert places == sorted(places)


def test_classes_and_confusions_of_the_last_iteration_are_on_the_page_unfolded(run_folder):
    counts = [["dog", "dog", 14], ["dog", "cat", 2], ["cat", None, 1], [None, "dog", 3]]
    line = {
        "iteration": 3, "AP": 0.3, "AP50": 0.6, "per_class": {"dog": 0.5, "cat": 0.1},
        "per_class_AP50": {"dog": 0.75, "cat": 0.2},
        "confusion": {"score": 0.5, "iou": 0.5, "counts": counts},
    }  # fmt: skip
    with (run_folder / "worker_0" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    text = build_page(read_run(run_folder))
    page = Page(text)
    assert ["dog", "0.500", "0.750", "16", "14", "2", "3", "0.88", "0.82"] in page.rows
    assert ["cat", "0.100", "0.200", "1", "0", "1", "2", "0.00", "0.00"] in page.rows
    assert ["labelled", "as dog", "as cat", "not detected"] in page.rows
    assert ["dog", "14", "2", "0"] in page.rows and ["nothing", "3", "0", ""] in page.rows
    assert "a score of at least 0.50" in page.text
    assert "worker_0 (clinic): classes after iteration 3" in page.text
    # The other silo's file is of an earlier version, which counted nothing.
    assert "worker_1: classes after iteration 2" in page.text
    assert page.text.count("What was detected where") == 1
    before = text[: text.index("worker_0 (clinic): classes after")]
    assert before.count("<details") == before.count("</details>")


def test_every_table_scrolls_in_its_own_box(run_folder):
    text = build_page(read_run(run_folder))
    assert text.count("<table") == text.count('<div class="wide"><table') > 5


def test_the_command_refuses_half_of_what_detections_need(run_folder, tmp_path):
    line = refused(tmp_path, "tools/report.py", "run", "--results=results.json")
    assert "--json is missing" in line
    assert not (run_folder / "report.html").exists()
