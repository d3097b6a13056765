"""What the engine reads from a federation file, also where the file is replaced after the check."""

import shutil

import pytest
import yaml
from mindspore import nn
from mindspore_federated.startup import yaml_config

from src.errors import UserError
from src.federated.engine_settings import checked_settings
from src.federated.manager import SiloManager
from src.federated.server import ServerJob, run_scheduler
from src.federated.silo import SiloSettings
from src.federated.transport import Client
from src.job.job_config import load_job
from src.model_utils.config import PROJECT_DIR

ADDRESS = "127.0.0.1:6668"


def start_silo(path):
    client = Client([ADDRESS], "FasterRCNN", "silo")
    SiloManager(path, nn.Cell(), 1, client, SiloSettings(images=1, iterations=3, threshold=2))


ROLES = {
    "scheduler": lambda path: run_scheduler(path, ADDRESS),
    "server": lambda path: ServerJob("server_0", path, ADDRESS, "127.0.0.1", "fl_ckpt"),
    "silo": start_silo,
}


@pytest.mark.parametrize("start", ROLES.values(), ids=ROLES)
def test_a_file_that_is_replaced_after_the_check_runs_nothing(tmp_path, start):
    path, trace = tmp_path / "federation.yaml", tmp_path / "trace"
    shutil.copy(PROJECT_DIR / "default_yaml_config.yaml", path)
    checked = load_job(path)
    path.write_text(f"fl_name: !!python/object/apply:os.mkdir [{trace}]\n")
    with pytest.raises(UserError, match="federation.yaml, line 1: not valid YAML: could not deter"):
        start(str(checked.path))
    assert not trace.exists()


def test_the_engine_gets_each_value_with_its_type(tmp_path, monkeypatch):
    class Item:
        """Keeps what the engine's binding is told; the binding itself gives nothing back."""

        def __getattr__(self, name):
            return lambda *value: self.__dict__.update(told=(name, *value))

    monkeypatch.setattr(yaml_config, "YamlConfigItem_", Item)
    values = yaml.safe_load((PROJECT_DIR / "default_yaml_config.yaml").read_text())
    values["ssl"] = {"crl_path": None}
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(values))
    with checked_settings():
        ours = yaml_config._load_yaml_config_file(str(path))
    engines = yaml_config._load_yaml_config_file(str(path))
    assert {k: v.told for k, v in ours.items()} == {k: v.told for k, v in engines.items()}
    assert len(ours) > 20
