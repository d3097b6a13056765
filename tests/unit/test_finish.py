"""What finishing says where there is nothing to finish."""

from src.job.job_record import update_record
from src.launch.finish import finish


def test_jobs_elsewhere_are_named_as_possibly_those_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    assert finish(here, 2345) == 0
    assert "--all" not in capsys.readouterr().out
    with update_record(other):
        pass
    assert finish(here, 2345) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"nothing to stop: no job was started from {here}")
    assert second.startswith(f"jobs of this user: {other} (--all finishes all of them")
    assert "several people use, those of the others too" in second
