"""The tutorial's figures, and the same numbers as TensorBoard's event files."""

import struct
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import refused, succeed
from PIL import Image
from run_folders import write_metrics, write_rounds, write_worker
from tensorboardX.proto.event_pb2 import Event

from src.reporting.plots import draw_losses, epoch_figure, grouped, rendered, step_figure
from src.reporting.run_folder import read_run
from src.reporting.tensorboard import write_events


@pytest.fixture
def silos(tmp_path):
    write_worker(tmp_path / "run" / "worker_0", [[5.0, 3.0], [2.0, 1.0]])
    write_worker(tmp_path / "run" / "worker_1", [[6.0, 4.0], [3.0, 2.0]])
    return read_run(tmp_path / "run").silos


def many_steps(folder, losses):
    """A silo with so many losses, 295 steps an epoch."""
    epochs = [losses[i : i + 295] for i in range(0, len(losses), 295)]
    write_worker(folder / "worker_0", epochs)
    return read_run(folder).silos[0]


def test_every_silo_has_its_pictures_and_all_have_one_together(silos, tmp_path):
    paths = draw_losses(silos, tmp_path / "out")
    stems = ["worker_0_step_loss", "worker_0_epoch_loss", "worker_1_step_loss"]
    stems += ["worker_1_epoch_loss", "epoch_loss"]
    assert [path.name for path in paths] == [f"{s}.{k}" for s in stems for k in ("png", "svg")]
    for path in paths:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            image = Image.open(path).convert("RGB")
            assert image.width > 800 and len(image.getcolors(image.width * image.height)) > 10


def test_bars_are_as_high_as_the_losses_and_the_title_names_the_silo(silos):
    (axes,) = step_figure(silos[1]).axes
    assert [bar.get_height() for bar in axes.patches] == [6, 4, 3, 2]
    assert axes.get_title() == "worker_1: loss of each step (4 steps, 2 epochs)"
    assert axes.get_xlabel() == "training step" and axes.get_ylabel() == "total loss"


def test_a_silos_own_name_stands_in_titles_and_legends_as_it_is(silos):
    silos[0].name, silos[1].name = "clinic $\\frac{1$ ", "医院"
    (axes,) = epoch_figure(silos).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["worker_0 (clinic \\$\\frac{1\\$ )", "worker_1 (医院)"]
    assert step_figure(silos[1]).axes[0].get_title().startswith("worker_1 (医院): loss")
    assert rendered(epoch_figure(silos[:1]), "svg")


def test_the_curve_of_a_silo_is_the_mean_of_each_epoch(silos):
    (axes,) = epoch_figure(silos).axes
    assert [line.get_label() for line in axes.lines] == ["worker_0", "worker_1"]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[4, 1.5], [5, 2.5]]
    assert len({line.get_color() for line in axes.lines}) == 2


def test_the_same_log_gives_the_same_bytes(silos):
    for kind in ("png", "svg"):
        assert rendered(step_figure(silos[0]), kind) == rendered(step_figure(silos[0]), kind)


@pytest.mark.parametrize("count", [200, 540])
def test_hundreds_of_steps_are_a_bar_each(tmp_path, count):
    silo = many_steps(tmp_path, np.linspace(9, 1, count).round(6))
    (axes,) = step_figure(silo).axes
    bars = [p.get_height() for p in axes.patches] if count == 200 else axes.patches[0].get_data()[0]
    np.testing.assert_array_equal(bars, silo.losses)


@pytest.mark.parametrize("count", [541, 8850])
def test_thousands_of_steps_are_a_line_through_each(tmp_path, count):
    silo = many_steps(tmp_path, np.linspace(9, 1, count).round(6))
    (axes,) = step_figure(silo).axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == list(range(1, count + 1))
    np.testing.assert_array_equal(line.get_ydata(), silo.losses)
    assert "loss of each step" in axes.get_title() and axes.get_legend() is None


def test_more_steps_are_drawn_in_groups_that_the_figure_names(tmp_path):
    losses = np.linspace(9, 1, 10_001).round(6)
    losses[3], losses[19:38] = 20, np.nan
    (axes,) = step_figure(many_steps(tmp_path, losses)).axes
    size = 19
    means, _ = axes.lines  # the other one marks the steps without a number
    assert len(means.get_xdata()) == -(-10_001 // size) - 1
    assert means.get_xdata()[:2].tolist() == [10, 48]
    assert np.isclose(means.get_ydata()[0], losses[:size].mean())
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == 20 and band[:, 1].min() == 1
    named = [text.get_text() for text in axes.get_legend().texts]
    assert named == ["lowest to highest of 19 steps", "mean of 19 steps", "loss NaN or infinite"]
    assert "each step" not in axes.get_title()


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 12])
def test_groups_hold_every_value_once(count):
    groups, size = grouped(np.arange(count, dtype=float), most=3)
    assert len(groups) <= 3 and groups.shape[1] == size
    assert groups[~np.isnan(groups)].tolist() == list(range(count))


def test_a_loss_that_is_not_finite_is_marked_where_it_was(tmp_path):
    silo = many_steps(tmp_path, [1.0, float("nan"), 2.0])
    (axes,) = step_figure(silo).axes
    assert [bar.get_height() for bar in axes.patches] == [1, 0, 2]
    (cross,) = axes.lines
    assert cross.get_xdata().tolist() == [2] and cross.get_label() == "loss NaN or infinite"


def test_epochs_can_stand_below_the_bars(tmp_path):
    silo = many_steps(tmp_path, [1.0] * 295 * 50)
    (axes,) = step_figure(silo, by_epoch=True).axes
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels[:2] == ["1", "4"] and len(labels) <= 20
    assert axes.get_xticks()[1] == 3 * 295 + 0.5
    assert axes.get_xlabel() == "epoch, at its first step"


def test_a_hundred_silos_are_one_mean_and_no_legend_of_a_hundred(tmp_path):
    for number in range(100):
        write_worker(tmp_path / f"worker_{number}", [[float(number)], [0.0]])
    (axes,) = epoch_figure(read_run(tmp_path).silos).axes
    assert [text.get_text() for text in axes.get_legend().texts] == ["mean of 100 silos"]
    assert axes.lines[-1].get_ydata().tolist() == [49.5, 0]


def events_in(folder):
    """tag -> (step, value) of the records in a folder's one event file (TFRecord)."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), {}
    while content:
        (length,) = struct.unpack_from("<Q", content)
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
        content = content[16 + length :]
    return found


def test_event_files_hold_losses_rates_rounds_and_metrics(tmp_path):
    folder = write_worker(tmp_path / "run" / "worker_0", [[5.0, 3.0], [2.0, 1.0]])
    write_rounds(folder, [1, 2])
    write_metrics(folder, [None, 0.25])
    silos = read_run(tmp_path / "run").silos
    for _ in range(2):
        assert write_events(silos, tmp_path / "tb") == [tmp_path / "tb" / "worker_0"]
    found = events_in(tmp_path / "tb" / "worker_0")
    assert found["loss/step"] == [(1, 5), (2, 3), (3, 2), (4, 1)]
    assert found["loss/epoch_mean"] == [(1, 4), (2, 1.5)]
    assert found["learning_rate"] == [(1, 0.001), (2, 0.001), (3, 0.002), (4, 0.002)]
    assert found["round/wait_s"] == [(1, 3), (2, 3)]
    assert found["metrics/AP"] == [(2, 0.25)]


def test_event_files_of_others_stay(silos, tmp_path):
    other = tmp_path / "tb" / "worker_0" / "events.out.tfevents.1.host"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"theirs")
    write_events(silos, tmp_path / "tb")
    assert other.read_bytes() == b"theirs"


def test_the_command_draws_a_run_and_names_what_it_wrote(silos, tmp_path):
    printed = succeed(tmp_path, "tools/plot_loss.py", "run", "--tensorboard=tb")
    paths = printed.split()
    assert str(tmp_path / "run" / "plots" / "epoch_loss.png") in paths
    assert paths[-1] == str(tmp_path / "tb" / "worker_1")
    assert all(events_in(tmp_path / "tb" / f"worker_{n}") for n in (0, 1))


def test_the_command_refuses_a_run_without_losses(tmp_path):
    write_worker(tmp_path / "worker_0", [])
    line = refused(tmp_path, "tools/plot_loss.py", ".")
    assert str(tmp_path) in line and "loss_0.log or worker.log of worker_0" in line
