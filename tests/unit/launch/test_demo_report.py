"""What the demo says at its end, of the logs and figures that its workers left."""

import json

from src.launch.demo import report


def test_losses_figures_and_places(tmp_path, capsys):
    worker = tmp_path / "worker_0"
    worker.mkdir()
    losses = [4.0, 2.0, 1.0, 0.5]
    lines = [f"[t][worker_0]epoch: 1 step: {i} total_loss: {loss}" for i, loss in enumerate(losses)]
    (worker / "worker.log").write_text("\n".join(["[t][worker_0] joined iteration 1", *lines]))
    figures = {"iteration": 2, "AP": 0.25, "AP50": None}
    (worker / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    report(tmp_path, silos=2, iterations=2)
    said = capsys.readouterr().out.splitlines()
    assert said[2].split() == ["worker_0", "3.000", "0.750"]
    assert said[3].split() == ["worker_1", "nan", "nan"]
    assert said[6].split() == ["2", "0.250", "nan"]
    assert f"rounds      {tmp_path}/worker_0/rounds.jsonl" in said
