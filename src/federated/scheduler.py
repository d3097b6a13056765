"""The scheduler: the engine's REST view of a job (/state, /queryInstance, /enableFLS, ...)."""

from __future__ import annotations

from mindspore_federated import FlSchedulerJob, SSLConfig

from src.federated.engine_settings import checked_settings


def run_scheduler(yaml_config: str, manage_address: str, tls: SSLConfig | None = None) -> None:
    """Serve the management API at `manage_address` until a signal ends it.

    Args:
        yaml_config: path of the federation's YAML file.
        manage_address: "ip:port".
        tls: passwords of the file's certificates where its enable_ssl is True.

    Raises:
        UserError: the file is invalid.
        RuntimeError: the engine cannot start, for example because the port is taken.
    """
    with checked_settings():
        job = FlSchedulerJob(yaml_config, manage_address, tls)
    job.run()
