"""Log folders: those of an earlier run are kept."""

from src.launch.processes import fresh_folder


def test_earlier_folders_are_renamed_never_deleted(tmp_path):
    folder = tmp_path / "worker_0"
    for text in ("first", "second"):
        (fresh_folder(folder) / "worker.log").write_text(text)
    fresh_folder(folder)
    assert (tmp_path / "worker_0.1" / "worker.log").read_text() == "first"
    assert (tmp_path / "worker_0.2" / "worker.log").read_text() == "second"
    assert not list(folder.iterdir())
