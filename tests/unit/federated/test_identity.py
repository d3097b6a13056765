"""The name by which servers know a silo, and what a process does when another one has it too."""

import random

import pytest

from src.federated.identity import IdentityTakenError, IdentityWatch, identity, plain_names
from src.federated.replies import Outcome, Reply
from src.federated.rounds import Round

NAME = "clinic_0 (10)"


def test_a_silo_with_other_data_is_another_silo_to_the_servers():
    assert identity("clinic", 2, 1180) == identity("clinic", 2, 1180)
    assert len({identity("clinic", n, size) for n in (1, 2) for size in (1180, 1181)}) == 4


def test_people_read_it_without_its_number_of_images():
    assert plain_names(["b_1 (20)", "a (x)_0 (3)"]) == ["a (x)_0", "b_1"]


class Process:
    """A process of a silo, as far as its identity goes."""

    def __init__(self, all_needed=False):
        self.lines = []
        self.watch = IdentityWatch(NAME, self.lines.append, all_needed)

    def joins(self, iteration, *answers):
        """Ask to join; an answer is an outcome, or (outcome, resent)."""
        self.watch.require_alone()
        for answer in answers:
            outcome, resent = answer if isinstance(answer, tuple) else (answer, False)
            self.watch.join_answered(iteration, Reply(outcome, iteration=0, unanswered=resent))
        self.watch.entered(iteration, kept=outcome is not Outcome.ACCEPTED)

    def sends(self, iteration, *answers, result="aggregated"):
        for answer in answers:
            outcome, resent = answer if isinstance(answer, tuple) else (answer, False)
            self.watch.upload_answered(iteration, Reply(outcome, unanswered=resent))
        late = outcome in (Outcome.FULL, Outcome.OVER)
        record = Round(iteration, "missed" if late else result)
        self.watch.ended(record)
        return record.result

    def warnings(self):
        return [line for line in self.lines if line.startswith("WARNING: ")]


A, D = Outcome.ACCEPTED, Outcome.DUPLICATE


@pytest.mark.parametrize("answer", [Outcome.FULL, Outcome.OVER])
def test_an_iteration_that_needed_this_silo_and_did_without_had_an_upload_in_its_name(answer):
    process = Process(all_needed=True)
    process.joins(1, A)
    assert process.sends(1, answer) == "missed"
    (line,) = process.warnings()
    assert f"another process uses this silo's identity, {NAME}, and its upload came first" in line
    process.joins(2, A)
    process.sends(2, A)
    assert len(process.warnings()) == 1
    # Where fewer uploads than silos suffice, it is usual to come too late.
    slow = Process()
    slow.joins(1, A)
    assert slow.sends(1, answer) == "missed" and not slow.warnings()


def test_a_silo_that_is_started_again_goes_on_with_a_word_of_who_may_have_its_place():
    again = Process()
    again.joins(4, D)
    assert not again.warnings()
    assert (
        f"{NAME} had joined iteration 4 before this process did; if that was no" in again.lines[0]
    )
    # The process before it had sent already: the silo is in the mean.
    assert again.sends(4, D) == "aggregated"
    (line,) = again.warnings()
    assert "if that was no earlier process of this silo, another silo uses its identity" in line
    for iteration in range(5, 9):
        again.joins(iteration, A)
        assert again.sends(iteration, A) == "aggregated"
    assert len(again.lines) == 2


def test_the_second_process_of_an_identity_says_so_and_ends_after_two_lost_rounds():
    second = Process()
    second.joins(1, D)
    second.sends(1, A)
    second.joins(2, D)
    (line,) = second.warnings()
    assert f"another process uses this silo's identity, {NAME}: it joined iteration 2" in line
    assert "give each silo a --silo_name or --first_worker_id of its own" in line
    assert second.sends(2, D) == "missed"
    second.joins(3, D)
    # The iteration was over before this one could send: the other one had.
    assert second.sends(3, Outcome.OVER) == "missed"
    for n, line in zip((2, 3), second.warnings()[1:]):
        assert f"training in iteration {n} is lost: another process uses this silo's" in line
    with pytest.raises(IdentityTakenError, match=r"counted in the iterations 2 and 3") as error:
        second.joins(4)
    assert "--silo_name or --first_worker_id" in str(error.value)


def test_a_first_iteration_that_an_earlier_process_may_have_taken_is_no_loss():
    """Whose upload counted there nobody can tell, so it ends no process, and stays as it was."""
    second = Process()
    second.joins(1, D)
    assert second.sends(1, D) == "aggregated"
    for iteration in (2, 3):
        second.joins(iteration, D)
        assert second.sends(iteration, D) == "missed"
    with pytest.raises(IdentityTakenError, match=r"counted in the iterations 2 and 3"):
        second.joins(4)


def test_a_round_without_effect_names_the_other_process_while_it_is_known():
    likely = "the likely reason that iteration {} came to nothing for this process is another one"
    process = Process()
    process.joins(1, A)
    # Too late, and no word of anybody else.
    assert process.sends(1, Outcome.OVER) == "missed"
    assert not process.warnings()
    process.joins(2, D)
    process.sends(2, A, result="lost")
    assert likely.format(2) in process.warnings()[-1] and NAME in process.warnings()[-1]
    process.joins(3, A)
    process.sends(3, Outcome.OVER)
    assert likely.format(3) in process.warnings()[-1]
    # The other one has lost two in a row then, which ends it.
    for iteration in (4, 5):
        process.joins(iteration, A)
        process.sends(iteration, A)
    said = len(process.lines)
    process.joins(6, A)
    process.sends(6, A, result="lost")
    assert len(process.lines) == said


def test_an_upload_that_counts_breaks_the_row():
    process = Process()
    for iteration in range(1, 40, 2):
        process.joins(iteration, A)
        assert process.sends(iteration, D) == "missed"
        process.joins(iteration + 1, D)
        assert process.sends(iteration + 1, A) == "aggregated"


def test_a_failed_iteration_whose_upload_was_the_other_ones_counts_as_lost():
    process = Process()
    for iteration in (1, 2):
        process.joins(iteration, A)
        assert process.sends(iteration, D, result="lost") == "lost"
    with pytest.raises(IdentityTakenError):
        process.joins(3, A)


@pytest.mark.parametrize("before", [(Outcome.UNREACHABLE,), (Outcome.SAFEMODE,), ()])
def test_requests_whose_answer_may_have_been_lost_prove_nothing(before):
    process = Process()
    process.joins(1, A)
    process.sends(1, A)
    for iteration in range(2, 6):
        kept = D if before else (D, True)
        process.joins(iteration, *before, kept)
        assert process.sends(iteration, *before, kept) == "aggregated"
    process.joins(6, *before, (Outcome.FULL, not before))
    assert process.sends(6, *before, (Outcome.FULL, not before)) == "missed"
    assert process.lines == []


def test_a_silo_that_was_let_in_while_the_iteration_changed_has_its_own_place():
    process = Process()
    process.joins(1, A)
    process.sends(1, A)
    process.watch.join_answered(2, Reply(A, iteration=3))
    process.joins(3, D)
    assert process.sends(3, A) == "aggregated"
    assert process.lines == []


def test_an_iteration_that_did_without_a_slow_silo_is_no_conflict():
    process = Process()
    for iteration in range(1, 20):
        process.joins(iteration, A)
        assert process.sends(iteration, Outcome.FULL) == "missed"
    assert process.lines == []


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("last_one_is_late", [0.0, 0.5, 1.0])
def test_of_processes_with_one_identity_one_always_stays(count, last_one_is_late):
    for seed in range(200):
        chance = random.Random(seed)
        living = [Process() for _ in range(count)]
        for iteration in range(1, 200):
            chance.shuffle(living)
            joined = []
            for process in living:
                try:
                    process.joins(iteration, D if joined else A)
                    joined.append(process)
                except IdentityTakenError:
                    assert iteration > 2
            living = joined
            assert living, f"seed {seed}: all have ended"
            chance.shuffle(living)
            for place, process in enumerate(living):
                late = Outcome.OVER if chance.random() < last_one_is_late else D
                process.sends(iteration, late if place else A)
        assert len(living) == 1, f"seed {seed}: {len(living)} go on"
