"""A launched job of tiny detectors whose head stays and whose updates get noise, twice over."""

import pytest
from commands import SERVER, WORKER, refused
from launched_job import Job
from models import read_model

from src.federated.privacy import epsilon_of

pytestmark = pytest.mark.slow

ITERATIONS = 2
LOCAL = "--local_params=rcnn.*"
NOISE = ["--dp_clip_norm=0.5", "--dp_noise_multiplier=0.01"]


@pytest.fixture(scope="module")
def leaving(tmp_path_factory, shards):
    """A folder after two finished jobs, and what was refused before the first."""
    with Job(tmp_path_factory.mktemp("leaving"), shards) as job:
        job.write(ITERATIONS)
        words = [*job.worker_flags, LOCAL, "--dp_noise_multiplier=1.0"]
        lines = [
            refused(job.folder, SERVER, *job.server_flags(), "--local_params=rcn.*"),
            refused(job.folder, WORKER, *words),
        ]
        for _ in range(2):
            job.scheduler()
            job.servers(1, LOCAL)
            job.workers(LOCAL, *NOISE)
            job.wait_for_end()
        yield job, lines


@pytest.fixture(scope="module")
def job(leaving):
    return leaving[0]


def test_what_makes_no_sense_is_refused_before_the_start(leaving):
    _, (pattern, noise) = leaving
    assert "local_params: 'rcn.*' matches none of the 66 trained weights" in pattern
    assert "did you mean rcnn.*" in pattern
    assert "dp_noise_multiplier is 1.0 and dp_clip_norm 0" in noise


def test_each_silo_keeps_a_head_of_its_own_and_shares_the_rest(job):
    first, second = (job.model(f"worker_{number}", ITERATIONS) for number in range(2))
    for name, value in first.items():
        same = bool((value == second[name]).all())
        assert same != name.startswith("rcnn."), name
    servers = read_model(job.recovery(ITERATIONS))
    assert not any(name.startswith("rcnn.") for name in servers)


def test_epsilon_goes_on_from_the_first_job(job):
    for label in ("worker_0", "worker_1"):
        told = [one["epsilon"] for one in job.rounds(label)]
        wanted = [epsilon_of([0.01] * uploads, 1e-5) for uploads in (3, 4)]
        assert told == pytest.approx(wanted, rel=1e-6)
        log = job.log(label)
        assert "privacy: 2 earlier upload(s) of this data count" in log
        assert "at delta 1e-05 in 4 upload(s)" in log
