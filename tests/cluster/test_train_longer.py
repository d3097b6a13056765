"""A job that has ended: it is trained on with more iterations, or gives its last model again."""

from __future__ import annotations

import numpy as np
import pytest
from commands import make_shards
from launched_job import Job
from models import read_model

# A whole job, started three times.
pytestmark = pytest.mark.slow

FLAGS = ["--threads=1", "--sync_frequency=2"]


def same_models(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    names = set(one) & set(other)
    return bool(names) and all(np.array_equal(one[name], other[name]) for name in names)


def test_a_job_that_has_ended_is_trained_on_and_gives_its_last_model_again(tmp_path_factory):
    shards = make_shards(tmp_path_factory.mktemp("shards"))
    with Job(tmp_path_factory.mktemp("job"), shards) as job:
        job.write(2)
        job.scheduler()
        job.servers(2)
        job.workers(*FLAGS)
        job.wait_for_end()
        assert set(job.exit_codes().values()) == {0}

        # Redis still knows the job as finished.
        more = "--fl_iteration_num=3"
        job.scheduler(more)
        said = job.servers(2, "--resume", more)
        assert "FasterRCNN had finished; it goes on to iteration 3" in said
        assert "iteration 3 of 3 begins when 2 silos have joined" in said
        job.workers(*FLAGS, "--resume", more)
        job.wait_for_end()
        assert set(job.exit_codes().values()) == {0}
        for label in ("worker_0", "worker_1"):
            assert [result for _, result in job.results(label)] == ["aggregated"] * 3
        last = read_model(job.recovery(3))
        assert not same_models(last, read_model(job.recovery(2)))

        # Redis has lost everything, and a silo its last checkpoint.
        job.start_redis()
        (kept,) = (job.folder / "worker_1").glob("ckpt/*/*-2epoch.ckpt")
        kept.unlink()
        said = job.servers(2, "--resume", more, "--fetch_timeout=60")
        assert "all 3 iterations are done: silos that do not have the last model get it" in said
        job.workers(*FLAGS, "--resume", more)
        job.wait_for_end("worker")
        assert "received the last model of the job" in job.log("worker_1")
        assert same_models(last, job.model("worker_1", 3))
        job.wait_for_end()
        assert set(job.exit_codes().values()) == {0}
