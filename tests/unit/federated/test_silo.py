"""What a silo does with each answer of a server, the rare ones above all."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from src.errors import UserError
from src.federated import server_requests
from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.replies import Outcome, Reply
from src.federated.rounds import (
    Deadlines,
    GaveUpError,
    JobRestartedError,
    SyncError,
    UploadRefusedError,
)
from src.federated.silo import Silo, SiloSettings

START = np.float32([1, 2, 3])
TRAINED = {"w": START + 1}


def model(iteration: int, values=START) -> Reply:
    return Reply(Outcome.ACCEPTED, iteration=iteration, features={"w": np.float32(values)})


def said(outcome: Outcome, iteration: int = 0, reason: str = "") -> Reply:
    return Reply(outcome, reason, iteration, address="127.0.0.1:6668")


class Script:
    """A client whose answers to each call are written down; the last one is repeated."""

    addresses = ("127.0.0.1:6668", "127.0.0.1:6669")
    fl_id = "clinic_0 (10)"

    def next_server(self):
        self.calls.append("next server")

    def __init__(self, **answers):
        answers = {"is_full": [said(Outcome.FULL)], **answers}
        self.answers = {name: deque(replies) for name, replies in answers.items()}
        self.calls: list[str] = []
        self.features: dict[str, np.ndarray] = {}  # of the last upload
        self.sizes: set[int] = set()  # declared when joining and sending

    def _next(self, name: str) -> Reply:
        self.calls.append(name)
        replies = self.answers[name]
        return replies.popleft() if len(replies) > 1 else replies[0]

    def start(self, data_size, seconds):
        self.sizes.add(data_size)
        return self._next("start")

    def update(self, iteration, features, data_size, seconds):
        self.features = features
        self.sizes.add(data_size)
        return self._next("update")

    def is_full(self, seconds):
        return self._next("is_full")

    def has_joined(self, iteration, seconds):
        return self._next("has_joined")

    def get_model(self, iteration, seconds):
        return self._next("latest" if iteration == -1 else "get")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(server_requests, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(server_requests, "POLL_SECONDS", 0.01)


def make(
    client: Script,
    seconds: float = 5.0,
    iterations: int = 3,
    adds: bool = False,
    declared: int | None = None,
    **options,
) -> tuple[Silo, dict, list]:
    loaded: dict[str, np.ndarray] = {}
    lines: list[str] = []
    deadlines = Deadlines(seconds, seconds, seconds)
    silo = Silo(
        client,
        loaded.update,
        {"w": 3},
        SiloSettings(10, iterations, 2, deadlines=deadlines, log=lines.append, **options),
        adds,
        declared,
    )
    return silo, loaded, lines


def joined(**answers) -> tuple[Silo, Script, dict, list]:
    client = Script(latest=[model(1)], start=[said(Outcome.ACCEPTED, 1)], **answers)
    silo, loaded, lines = make(client)
    silo.join()
    return silo, client, loaded, lines


def test_a_server_in_safemode_or_away_is_asked_again():
    away = [said(Outcome.UNREACHABLE, reason="connection refused"), said(Outcome.SAFEMODE)]
    client = Script(latest=[*away, model(2)], start=[*away, said(Outcome.ACCEPTED, 2)])
    silo, loaded, lines = make(client)
    silo.join()
    assert silo.joined and silo.iteration == 2 and client.calls.count("start") == 3
    np.testing.assert_array_equal(loaded["w"], START)
    assert lines[0].startswith("waiting for the servers (unreachable: connection refused), 0 s")
    assert lines[-1] == "joined iteration 2 of 3 as silo 0 with 10 images (clinic_0)"
    silo.join()
    assert client.calls.count("start") == 3


def test_a_server_that_never_comes_is_given_up():
    silo, loaded, _ = make(Script(latest=[said(Outcome.UNREACHABLE)]), seconds=0.1)
    with pytest.raises(GaveUpError, match="waiting for the servers"):
        silo.join()
    assert not loaded


@pytest.mark.parametrize("again", [Outcome.DUPLICATE, Outcome.FULL])
def test_a_permission_for_a_later_iteration_keeps_its_control_variates(again):
    permission = said(Outcome.ACCEPTED, 2)
    permission.features = {"c": np.float32([4])}
    client = Script(
        latest=[model(1), model(2, [7, 7, 7])],
        start=[permission, said(again, 2)],
        has_joined=[said(Outcome.REFUSED)],
    )
    silo, loaded, lines = make(client)
    silo.join()
    assert silo.iteration == 2 and loaded["w"][0] == 7
    assert silo.controls == permission.features
    assert lines[-1] == "joined iteration 2 of 3 as silo 0 with 10 images (clinic_0)"


def test_a_place_of_an_earlier_process_comes_without_control_variates():
    permission = said(Outcome.ACCEPTED, 1)
    permission.features = {"c": np.float32([4])}
    client = Script(
        latest=[model(1), model(2), model(3)],
        start=[permission, said(Outcome.DUPLICATE, 2), said(Outcome.DUPLICATE, 2)],
        update=[said(Outcome.OVER)],
        get=[model(2)],
    )
    silo, _, lines = make(client)
    silo.join()
    assert silo.controls == permission.features
    silo.exchange(TRAINED)
    silo.join()
    assert silo.controls == {}
    assert any(line.startswith("kept the place in iteration 2") for line in lines)


def test_a_full_iteration_with_our_place_in_it_is_kept():
    client = Script(
        latest=[model(2)],
        start=[said(Outcome.FULL, 2)],
        has_joined=[said(Outcome.SAFEMODE), said(Outcome.REFUSED)],
    )
    silo, _, lines = make(client)
    silo.join()
    assert silo.joined and lines[-2].startswith("kept the place in iteration 2")
    assert lines[-1].startswith("clinic_0 (10) had joined iteration 2 before this process did")


def test_a_full_iteration_without_us_is_waited_out():
    client = Script(
        latest=[model(2)],
        start=[said(Outcome.FULL, 2), said(Outcome.ACCEPTED, 3)],
        has_joined=[said(Outcome.NOT_JOINED)],
        get=[said(Outcome.NOT_READY), said(Outcome.SAFEMODE), model(3, [5, 5, 5])],
    )
    silo, loaded, _ = make(client)
    silo.join()
    assert silo.iteration == 3 and loaded["w"][0] == 5 and client.calls.count("latest") == 1


def test_the_others_are_waited_for_longer_than_512_questions(monkeypatch):
    monkeypatch.setattr(server_requests, "POLL_SECONDS", 0.0)
    waiting = [said(Outcome.NOT_READY)] * 2000
    silo, client, loaded, _ = joined(
        update=[said(Outcome.ACCEPTED, 1)], get=[*waiting, model(2, [9, 9, 9])]
    )
    assert silo.exchange(TRAINED).result == "aggregated" and loaded["w"][0] == 9
    assert client.calls.count("get") == 2001


@pytest.mark.parametrize(
    ("answer", "more"), [(Outcome.REFUSED, ", which has fewer so far"), (Outcome.FULL, "")]
)
def test_a_wait_says_whether_silos_are_still_missing(monkeypatch, answer, more):
    silo, client, _, lines = joined(
        update=[said(Outcome.ACCEPTED, 1)], get=[said(Outcome.NOT_READY)], is_full=[said(answer)]
    )
    monkeypatch.setattr(silo._requests, "_deadlines", Deadlines(5.0, 5.0, 0.1))
    words = f"waiting for the others of 2 silos in iteration 1{more}$"
    with pytest.raises(GaveUpError, match=words):
        silo.exchange(TRAINED)
    advice = "iteration 1 needs 2 silos (start_fl_job_threshold): start another one, or"
    assert any(line.startswith(advice) for line in lines) == bool(more)


def test_an_iteration_that_was_called_full_and_has_room_is_joined(monkeypatch):
    monkeypatch.setattr(server_requests, "ASK_AGAIN_SECONDS", 0.0)
    client = Script(
        latest=[model(2)],
        start=[said(Outcome.FULL), said(Outcome.FULL), said(Outcome.ACCEPTED, 2)],
        has_joined=[said(Outcome.FULL)],
        get=[said(Outcome.NOT_READY)],
    )
    silo, _, lines = make(client)
    silo.join()
    assert (
        silo.joined and lines[-1] == "joined iteration 2 of 3 as silo 0 with 10 images (clinic_0)"
    )
    assert client.calls.count("start") == 3


def test_a_finished_job_has_nothing_to_join():
    silo, loaded, lines = make(Script(latest=[model(4)], start=[said(Outcome.FINISHED)]))
    silo.join()
    assert silo.finished and not silo.joined and "w" in loaded
    assert lines[-1] == "the job is finished: all 3 iterations are done"


@pytest.mark.parametrize(("theirs", "mine"), [(2, 9), (9, 2)])
def test_another_number_of_iterations_is_said_at_once_and_the_shorter_one_ends_the_silo(
    theirs, mine
):
    let_in = [replace(said(Outcome.ACCEPTED, n), iterations=theirs) for n in (1, 2)]
    client = Script(
        latest=[model(1)],
        start=[*let_in, said(Outcome.FINISHED)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(2, START + 1), model(3, START + 2)],
    )
    silo, _, lines = make(client, iterations=mine)
    silo.join()
    (warning,) = (line for line in lines if line.startswith("WARNING: "))
    assert f"fl_iteration_num is {theirs} at the servers and {mine} in this silo" in warning
    assert "leaves after iteration 2;" in warning
    silo.exchange(TRAINED)
    silo.join()
    silo.exchange({"w": START + 3})
    silo.join()
    assert silo.finished and lines[-1] == "the job is finished: all 2 iterations are done"
    assert sum(line.startswith("WARNING: ") for line in lines) == 1


def test_a_job_that_is_switched_off_before_its_last_iteration_is_waited_for():
    """As disabled, or with a Redis that takes no writes."""
    first, second = (replace(said(Outcome.ACCEPTED, n), iterations=3) for n in (1, 2))
    client = Script(
        latest=[model(1)],
        start=[first, said(Outcome.FINISHED), second],
        update=[said(Outcome.ACCEPTED)],
        get=[model(2, START + 1)],
    )
    silo, _, lines = make(client)
    silo.join()
    silo.exchange(TRAINED)
    silo.join()
    assert silo.joined and silo.iteration == 2
    assert not any("WARNING" in line for line in lines)
    (waiting,) = (line for line in lines if line.startswith("waiting for the servers"))
    assert "which take nobody in after iteration 1 of 3: the job is disabled, or Redis" in waiting


def test_a_disabled_job_is_waited_for():
    client = Script(latest=[model(2)], start=[said(Outcome.FINISHED), said(Outcome.ACCEPTED, 2)])
    silo, _, _ = make(client)
    silo.join()
    assert silo.joined and not silo.finished


def test_servers_that_count_the_same_iteration_twice_get_one_upload_of_it():
    silo, client, loaded, _ = joined(update=[said(Outcome.ACCEPTED)], get=[model(1, [9, 9, 9])])
    with pytest.raises(SyncError, match="ends iteration 1 and calls it the current one still"):
        silo.exchange(TRAINED)
    assert client.calls.count("update") == 1 and loaded["w"][0] == 1


def test_nothing_is_sent_beyond_the_last_iteration():
    client = Script(
        latest=[model(1), model(9)],
        start=[said(Outcome.ACCEPTED, 9)],
        update=[said(Outcome.ACCEPTED)],
    )
    silo, _, _ = make(client)
    silo.join()
    assert silo.finished and not silo.joined and "update" not in client.calls


def test_a_refusal_to_join_is_told():
    reply = said(Outcome.REFUSED, 1, "FL job data size is too large.")
    silo, _, _ = make(Script(latest=[model(1)], start=[reply]))
    with pytest.raises(SyncError, match="127.0.0.1:6668 .* FL job data size is too large"):
        silo.join()


def test_nothing_is_sent_without_a_join():
    client = Script(update=[said(Outcome.ACCEPTED)])
    silo, _, _ = make(client)
    with pytest.raises(SyncError, match="has joined"):
        silo.exchange(TRAINED)
    assert client.calls == []


@pytest.mark.parametrize("outcome", [Outcome.ACCEPTED, Outcome.DUPLICATE])
def test_a_round(outcome):
    silo, client, loaded, _ = joined(
        update=[said(Outcome.SAFEMODE), said(Outcome.UNREACHABLE), said(outcome)],
        has_joined=[said(Outcome.REFUSED)],
        get=[said(Outcome.NOT_READY), model(2, [9, 9, 9])],
    )
    record = silo.exchange(TRAINED)
    assert record.result == "aggregated" and loaded["w"][0] == 9
    assert (silo.iteration, silo.joined, silo.finished) == (2, False, False)
    assert client.calls.count("update") == 3


@pytest.mark.parametrize(
    ("again", "all_needed", "result"),
    [
        (Outcome.OVER, True, "aggregated"),
        (Outcome.OVER, False, "missed"),
        (Outcome.FULL, True, "aggregated"),
    ],
)
def test_an_upload_whose_answer_was_lost_is_not_sent_again_in_vain(again, all_needed, result):
    lost = said(Outcome.UNREACHABLE, reason="no answer")
    lost.unanswered = True
    client = Script(
        latest=[model(1)],
        start=[said(Outcome.ACCEPTED, 1)],
        update=[lost],
        has_joined=[said(Outcome.UNREACHABLE), said(again)],
        get=[model(2, [9, 9, 9])],
    )
    silo, loaded, lines = make(client, all_needed=all_needed)
    silo.join()
    assert silo.exchange(TRAINED).result == result and loaded["w"][0] == 9
    assert client.calls.count("update") == 1
    assert any("not known whether" in line for line in lines) != all_needed


def test_an_upload_that_was_cut_off_and_came_too_late_is_missed():
    client = Script(
        latest=[model(1)],
        start=[said(Outcome.ACCEPTED, 1)],
        update=[said(Outcome.UNREACHABLE)],
        has_joined=[said(Outcome.OVER)],
        get=[model(2, [9, 9, 9])],
    )
    silo, _, _ = make(client, all_needed=True)
    silo.join()
    assert silo.exchange(TRAINED).result == "missed"


def test_the_last_round_finishes_the_job():
    client = Script(
        latest=[model(3)],
        start=[said(Outcome.ACCEPTED, 3)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(4, [9, 9, 9])],
    )
    silo, loaded, _ = make(client)
    silo.join()
    silo.exchange(TRAINED)
    assert silo.finished and loaded["w"][0] == 9 and client.calls.count("latest") == 1


@pytest.mark.parametrize("iteration", [3, 4])
@pytest.mark.parametrize(("ended", "result"), [([9, 9, 9], "missed"), (START, "lost")])
def test_a_silo_that_is_iterations_late_goes_on_from_the_latest_model(iteration, ended, result):
    client = Script(
        latest=[model(1), model(iteration, [7, 7, 7])],
        start=[said(Outcome.ACCEPTED, 1), said(Outcome.ACCEPTED, iteration)],
        update=[said(Outcome.OVER)],
        get=[model(iteration, ended)],
    )
    silo, loaded, lines = make(client)
    silo.join()
    assert silo.exchange(TRAINED).result == result and loaded["w"][0] == 7
    silo.join()
    assert silo.iteration == iteration and silo.finished == (iteration == 4)
    assert loaded["w"][0] == 7 and client.calls.count("latest") == 2
    which = "the last model of the job" if iteration == 4 else "the weights that iteration 3"
    assert any(f"received {which}" in line for line in lines)


def test_a_silo_without_a_place_that_misses_iterations_takes_the_latest_model():
    client = Script(
        latest=[model(1), model(3, [7, 7, 7])],
        start=[said(Outcome.FULL, 1), said(Outcome.ACCEPTED, 3)],
        has_joined=[said(Outcome.NOT_JOINED)],
        get=[model(3, [5, 5, 5])],
    )
    silo, loaded, _ = make(client)
    silo.join()
    assert silo.joined and silo.iteration == 3 and loaded["w"][0] == 7


@pytest.mark.parametrize("outcome", [Outcome.FULL, Outcome.OVER, Outcome.FINISHED])
def test_an_upload_that_comes_too_late_is_missed(outcome):
    silo, _, loaded, lines = joined(update=[said(outcome)], get=[model(2, [9, 9, 9])])
    assert silo.exchange(TRAINED).result == "missed" and loaded["w"][0] == 9
    assert lines[-1].startswith("iteration 1 ended without this silo's weights: received")


def test_an_upload_that_was_called_too_late_and_has_room_is_sent_again(monkeypatch):
    monkeypatch.setattr(server_requests, "ASK_AGAIN_SECONDS", 0.0)
    silo, client, loaded, lines = joined(
        update=[said(Outcome.FULL), said(Outcome.FINISHED), said(Outcome.ACCEPTED)],
        has_joined=[said(Outcome.FULL), said(Outcome.REFUSED)],
        get=[said(Outcome.NOT_READY)] * 6 + [model(2, [9, 9, 9])],
    )
    assert silo.exchange(TRAINED).result == "aggregated" and loaded["w"][0] == 9
    assert client.calls.count("update") == 3
    assert lines.count("iteration 1 took this silo's weights after all") == 1


def test_an_iteration_that_changes_nothing_was_lost():
    silo, _, loaded, lines = joined(update=[said(Outcome.ACCEPTED)], get=[model(2)])
    assert silo.exchange(TRAINED).result == "lost"
    np.testing.assert_array_equal(loaded["w"], START)
    assert lines[-1].startswith("iteration 1 failed at the servers")


def test_a_training_that_changes_nothing_loses_nothing():
    silo, _, _, _ = joined(update=[said(Outcome.ACCEPTED)], get=[model(2)])
    assert silo.exchange({"w": START}).result == "aggregated"


@pytest.mark.parametrize(("change", "result"), [([1, 0, 0], "lost"), ([0, 0, 0], "aggregated")])
def test_servers_that_add_get_changes_and_a_fingerprint_of_zeros(change, result):
    client = Script(
        latest=[marked(1)],
        start=[said(Outcome.ACCEPTED, 1)],
        update=[said(Outcome.ACCEPTED)],
        get=[marked(2)],
    )
    silo, _, _ = make(client, aspects={"size": 1}, adds=True)
    silo.join()
    assert silo.exchange({"w": np.array(change, np.float32)}).result == result
    assert not client.features[FEATURE_NAME].any()


@pytest.mark.parametrize(("declared", "size"), [(None, 10), (25, 25)])
def test_one_weight_is_declared_throughout(declared, size):
    client = Script(
        latest=[model(1)],
        start=[said(Outcome.ACCEPTED, 1)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(2, [9, 9, 9])],
    )
    silo, _, _ = make(client, declared=declared)
    silo.join()
    silo.exchange(TRAINED)
    assert client.sizes == {size} and silo.data_size == size


def test_servers_that_have_forgotten_the_silo_are_joined_again():
    silo, client, _, _ = joined(
        update=[said(Outcome.NOT_JOINED), said(Outcome.ACCEPTED)],
        get=[said(Outcome.NOT_READY), model(2, [9, 9, 9])],
    )
    assert silo.exchange(TRAINED).result == "aggregated"
    assert client.calls == ["latest", "start", "update", "get", "start", "update", "get"]


def test_an_iteration_that_is_over_is_not_joined_again():
    silo, client, _, _ = joined(update=[said(Outcome.NOT_JOINED)], get=[model(2, [9, 9, 9])])
    assert silo.exchange(TRAINED).result == "missed"
    assert client.calls.count("start") == 1


def test_a_refused_upload_says_why():
    silo, _, _, _ = joined(update=[said(Outcome.REFUSED, reason="Verify failed")])
    with pytest.raises(UploadRefusedError, match="the weights of iteration 1: Verify failed"):
        silo.exchange(TRAINED)


def test_a_job_started_anew_is_told():
    client = Script(
        latest=[model(3)],
        start=[said(Outcome.ACCEPTED, 3)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(1)],
    )
    silo, loaded, _ = make(client)
    silo.join()
    loaded.clear()
    with pytest.raises(JobRestartedError, match="at iteration 1 and this silo has seen 3"):
        silo.exchange(TRAINED)
    assert not loaded


def marked(iteration: int, values=START, factor: float = 1.0, aspects: dict | None = None) -> Reply:
    reply = model(iteration, values)
    reply.features[FEATURE_NAME] = fingerprint(aspects or {"size": 1}) * np.float32(factor)
    return reply


RUINED = [[0, 0, 0], [1, np.nan, 1], [1, 2, 1e30], [900, 900, 900]]


@pytest.mark.parametrize("values", RUINED)
def test_a_ruined_global_model_costs_one_iteration(values):
    client = Script(
        latest=[model(1)],
        start=[said(Outcome.ACCEPTED, n) for n in (1, 2)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(2, values), model(3, [1, 2, 4])],
    )
    silo, loaded, lines = make(client, max_change=10.0)
    silo.join()
    assert silo.exchange(TRAINED).result == "lost"
    np.testing.assert_array_equal(loaded["w"], START)
    assert any("the model of iteration 1 is not taken, the last good one is" in x for x in lines)
    silo.join()
    assert silo.exchange(TRAINED).result == "aggregated" and loaded["w"][2] == 4
    assert client.calls.count("latest") == 1


@pytest.mark.parametrize("values", RUINED)
def test_three_ruined_global_models_in_a_row_end_a_silo(values):
    client = Script(
        latest=[model(1)],
        start=[said(Outcome.ACCEPTED, n) for n in (1, 2, 3)],
        update=[said(Outcome.ACCEPTED)],
        get=[model(n, values) for n in (2, 3, 4)],
    )
    silo, loaded, _ = make(client, max_change=10.0)
    for _ in range(2):
        silo.join()
        assert silo.exchange(TRAINED).result == "lost"
    silo.join()
    with pytest.raises(SyncError, match="iteration 3, and this silo could take none of the last 3"):
        silo.exchange(TRAINED)
    np.testing.assert_array_equal(loaded["w"], START)


def test_one_value_among_many_is_seen():
    values = np.ones(100_000, np.float32)
    values[77_777] = np.inf
    client = Script(latest=[model(1, values)])
    silo, loaded, _ = make(client)
    with pytest.raises(SyncError, match="1 of the 100000 values of w are NaN or infinite"):
        silo.join()
    assert not loaded


def test_a_silo_that_starts_at_a_ruined_model_takes_the_one_before():
    client = Script(
        latest=[marked(3, aspects={"size": 2})],
        get=[marked(3, aspects={"size": 2}), marked(3, [4, 4, 4])],
        start=[said(Outcome.ACCEPTED, 3)],
    )
    silo, loaded, lines = make(client, aspects={"size": 1})
    silo.join()
    assert silo.joined and silo.iteration == 3 and loaded["w"][0] == 4
    assert any("A silo that has joined or the servers have another version" in x for x in lines)


def test_a_silo_of_another_setting_does_not_start():
    client = Script(latest=[marked(3)], get=[marked(3)])
    silo, loaded, _ = make(client, aspects={"size": 2})
    with pytest.raises(UserError, match="do not agree on: size"):
        silo.join()
    assert not loaded


def test_what_differs_is_told_from_the_model_before_a_ruined_one():
    ruined = marked(3, aspects={"size": 1, "class list": 2})
    client = Script(latest=[ruined], get=[marked(2)])
    silo, loaded, _ = make(client, aspects={"size": 2})
    with pytest.raises(UserError, match="do not agree on: size"):
        silo.join()
    assert not loaded


@pytest.mark.parametrize(
    ("answers", "result", "loaded_value"),
    [
        ([marked(2, [72, 72, 72], 8), marked(2, [9, 9, 9])], "aggregated", 9),
        ([marked(2, [72, 72, 72], 8)] * 2 + [marked(2)], "lost", 1),
    ],
)
def test_a_model_with_an_upload_too_many_in_it_is_asked_for_elsewhere(
    answers, result, loaded_value
):
    client = Script(
        latest=[marked(1)],
        start=[said(Outcome.ACCEPTED, 1)],
        update=[said(Outcome.ACCEPTED)],
        get=answers,
    )
    silo, loaded, lines = make(client, aspects={"size": 1})
    silo.join()
    assert silo.exchange(TRAINED).result == result and loaded["w"][0] == loaded_value
    words = "is not the mean but 8 times it; asking for that of iteration 1 instead"
    assert any(words in line for line in lines)
    assert "next server" in client.calls


def test_a_model_that_no_server_has_sound_is_divided_by_its_factor():
    client = Script(
        latest=[marked(5, [3, 6, 9], 3)],
        get=[marked(5, [3, 6, 9], 3)],
        start=[said(Outcome.FINISHED)],
    )
    silo, loaded, lines = make(client, aspects={"size": 1})
    silo.join()
    assert any("not the mean but 3 times it; dividing it by that" in line for line in lines)
    np.testing.assert_allclose(loaded["w"], START)
