"""Call the scheduler's management API, and guard against what the engine does wrong in it.

The scheduler only writes to Redis; the servers act on it within a second or two. `Management`
talks to the scheduler, the functions below it check Redis before and after.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError
from src.files import parsed_json
from src.job.addresses import parse_address
from src.job.job_config import JobConfig, load_job
from src.job.job_record import FOLDER, JobRecord, read_record, require_own
from src.job.recovery_files import begin_from_newest
from src.launch.command_line import JOB_FLAGS
from src.launch.redis_store import DISABLED, FINISHED, RUNNING, WINDOWS, JobStore, settings_of
from src.reporting.run_folder import started_commands
from src.security.tls import TlsFiles, breaks_off, client_context, explain, speaks_tls

ANSWER_S = 3.0
EFFECT_S = 20.0
# Every server polls Redis once a second. A job never came to its end after a change that was
# made before all servers had seen the one before it.
SETTLE_S = 2.5
LARGEST_ANSWER = 10**6
HEADERS = {"Connection": "close"}


class Management:
    """Call one scheduler's API.

    Args:
        address: "ip:port" that the scheduler listens on. Proxies of the environment are not used,
            and redirects are not followed.
        timeout_s: for a whole request, from the connection to the last byte of the answer.
        tls: encrypts the requests; None is plain text.
    """

    def __init__(self, address: str, timeout_s: float = ANSWER_S, tls: TlsFiles | None = None):
        self.address = address
        self._timeout_s = timeout_s
        self._tls = tls

    def state(self) -> dict[str, Any]:
        """Return `cluster_state` (CLUSTER_READY, _DISABLE, _FINISH; not if stopped) and `nodes`."""
        return self._call("/state")

    def query(self) -> dict[str, Any]:
        """Return the settings that the servers use."""
        return self._call("/queryInstance")["result"]

    def enable(self) -> None:
        """Let the servers accept silos again."""
        self._call("/enableFLS")

    def disable(self) -> None:
        """Make the servers refuse silos; the current iteration fails."""
        self._call("/disableFLS")

    def new_instance(self, values: dict[str, Any]) -> None:
        """Restart at iteration 1, with `values` in place of the settings of the same names."""
        self._call("/newInstance", json.dumps(values).encode())

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        try:
            with self._connected() as connection:
                connection.request("GET" if body is None else "POST", path, body, HEADERS)
                answer = connection.getresponse()
                status, text = answer.status, answer.read(LARGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"the scheduler at {self.address} does not answer ({self._reason(error)}): start "
                "it with run_cross_silo_fasterrcnn_sched.py, or give --scheduler_manage_address"
            ) from None
        values = self._understand(path, text)
        if status != http.client.OK:
            reason = values.get("error_message") or f"HTTP {status}"
            raise UserError(f"the scheduler at {self.address} refuses {path}: {reason}")
        return values

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """Open a connection that raises TimeoutError at its deadline, even if bytes trickle in."""
        host, port = self.address.rsplit(":", 1)
        ended = time.monotonic() + self._timeout_s
        sock = socket.create_connection((host, int(port)), self._timeout_s)
        if self._tls:
            sock = client_context(self._tls).wrap_socket(
                sock, server_hostname=host, do_handshake_on_connect=False
            )
        watch = threading.Timer(max(ended - time.monotonic(), 0), _break, [sock])
        watch.daemon = True
        watch.start()
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection = http.client.HTTPConnection(host, int(port))
            connection.sock = sock
            yield connection
            if time.monotonic() >= ended:
                raise TimeoutError("timed out")  # a truncated body ends without an error
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= ended:
                raise TimeoutError("timed out") from error
            raise
        finally:
            watch.cancel()
            sock.close()

    def _reason(self, error: Exception) -> str:
        host, port = self.address.rsplit(":", 1)
        if not self._tls and breaks_off(error) and speaks_tls(host, int(port)):
            return "it speaks TLS, and this job's enable_ssl is False"
        return explain(error)

    def _understand(self, path: str, text: bytes) -> dict[str, Any]:
        try:
            values = parsed_json(text)
        except ValueError:
            values = None
        if not isinstance(values, dict) or "code" not in values:
            raise UserError(
                f"{self.address} is no scheduler of a federation: {path} answers {text[:40]!r}; "
                "give its ip:port in --scheduler_manage_address"
            )
        return values


def _break(sock: socket.socket) -> None:
    # It may have been closed a moment ago. Use the plain socket's method also under TLS: the
    # wrapper's would wait for the peer.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def enable(management: Management, store: JobStore) -> list[str]:
    """Resume a disabled job, and return a report of what happened, in lines.

    Raises:
        UserError: it is enabled or finished, or the servers do not follow.
    """
    management.enable()
    _await(lambda: store.status().get("runningState") == RUNNING, "the servers' going on")
    time.sleep(SETTLE_S)
    return [f"{store.fl_name} is enabled: iteration {store.status()['iterationNum']} takes silos"]


def disable(management: Management, store: JobStore, force: bool = False) -> list[str]:
    """Pause a job, and return a report of what happened, in lines.

    The engine makes the current iteration fail when paused, whether or not silos are in it.

    Args:
        force: pause even if silos lose their training, or the job its last iteration.

    Raises:
        UserError: it is disabled or finished, work would be lost and `force` is not set, or the
            servers do not follow.
    """
    number, last = _iteration(store)
    if not force and (silos := store.joined(number)):
        raise UserError(
            f"disabling fails the current iteration, {number} of {last}, and what "
            f"{', '.join(silos)} have trained in it is lost; --force does it all the same"
        )
    if not force and number >= last:
        raise UserError(
            f"disabling fails the current iteration, and {number} of {last} is the last one: the "
            "job would be over without it; --force does it all the same"
        )
    _pause(management, store, number)
    return [
        f"{store.fl_name} is disabled: its servers refuse silos until status.py enable",
        f"iteration {number} of {last} has failed by it; the job goes on with {number + 1}",
        "silos that wait end with an error after their --join_timeout (600 s by default)",
    ]


def new_instance(
    management: Management,
    store: JobStore,
    job: JobConfig,
    checkpoint_dir: Path | None,
    force: bool = False,
) -> list[str]:
    """Restart the job at iteration 1 with its current model and the settings of `job`.

    It guards against five problems: the engine does not check settings (`job` is checked); its
    timers read the time windows' milliseconds as seconds; silos see that the job was restarted and
    end; servers in the middle of a sum would not follow; earlier recovery files would outlast those
    of the new instance.

    Args:
        job: fl_iteration_num, start_fl_job_threshold, the ratio and the windows are read.
        checkpoint_dir: folder of the servers' models, where this machine has it.
        force: restart even while silos take part.

    Returns:
        What happened, in lines.

    Raises:
        UserError: the job is finished or in its last iteration, silos take part without `force`,
            or the servers do not follow.
    """
    number, last = _iteration(store)
    _require_unfinished(store)
    if not force:
        _require_no_silos(store, number, last)
    if store.status().get("runningState") != DISABLED:
        if number >= last:
            raise UserError(
                f"{store.fl_name} is in its last iteration, {number}: let it finish, and start "
                "its servers again with run_cross_silo_fasterrcnn_server.py"
            )
        # A server that is adding up would stay in the old instance.
        _pause(management, store, number)
    servers = {_node(key) for key in store.heartbeats()}
    before = store.instance()
    management.new_instance(_values(job))
    _await(lambda: store.instance() != before, "the new instance")
    prefix = f":{store.instance()}:"
    _await(
        lambda: {_node(key) for key in store.heartbeats() if prefix in key} >= servers,
        "all servers' change to the new instance",
    )
    # The servers have set their timers; a server that starts later reads milliseconds again.
    store.replace_settings(**settings_of(job))
    lines = [
        f"{store.fl_name} begins again: iteration 1 of {job.iterations}, "
        f"{job['round.start_fl_job_threshold']} silos, from its present model"
    ]
    if checkpoint_dir is not None:
        lines += begin_from_newest(checkpoint_dir, store.fl_name)
    return [*lines, f"start each silo again with --fl_iteration_num={job.iterations}"]


def _require_unfinished(store: JobStore) -> None:
    if store.status().get("runningState") == FINISHED:
        raise UserError(
            f"{store.fl_name} is finished and its servers are about to end: start them again with "
            "run_cross_silo_fasterrcnn_server.py"
        )


def _require_no_silos(store: JobStore, number: int, last: int) -> None:
    """Check that no silo would lose its training."""
    # Between two iterations silos are in neither, for a moment.
    silos = sorted({*store.joined(number), *store.joined(number - 1)})
    if silos:
        raise UserError(
            f"{', '.join(silos)} take part (iteration {number} of {last}) and would end with an "
            "error, since the job is started again under them: stop these workers first and wait a "
            "minute, or give --force"
        )


def _pause(management: Management, store: JobStore, number: int) -> None:
    """Disable the job and return when every server knows it."""
    management.disable()
    _await(lambda: _iteration(store)[0] > number, "the servers' pause")
    time.sleep(SETTLE_S)


def _values(job: JobConfig) -> dict[str, Any]:
    """Return what newInstance takes; windows in seconds, see `new_instance`."""
    settings = settings_of(job)
    return {**settings, **{key: settings[key] // 1000 for key in WINDOWS}}


def _iteration(store: JobStore) -> tuple[int, int]:
    """Return the current iteration and the number of the last one."""
    status, settings = store.status(), store.settings()
    if not status or not settings:
        host, port = store.address
        raise UserError(f"Redis at {host}:{port} knows no job {store.fl_name}: start its servers")
    return int(status["iterationNum"]), int(settings["fl_iteration_num"])


def _node(heartbeat_key: str) -> str:
    return heartbeat_key.split(":heartbeat:")[1]


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + EFFECT_S
    while not condition():
        if time.monotonic() > deadline:
            raise UserError(
                f"the scheduler has taken the request, but {what} is not there within "
                f"{EFFECT_S:.0f} s: are the servers alive (status.py)?"
            )
        time.sleep(0.1)


# Settings that a user may look up or change; the others have no effect between silos.
SHOWN = (
    "fl_iteration_num",
    "start_fl_job_threshold",
    "start_fl_job_time_window",
    "update_model_ratio",
    "update_model_time_window",
    "global_iteration_time_window",
    "aggregation_type",
    "enable_ssl",
)


def run_management(command: str, folder: Path, args: Any) -> list[str] | dict[str, Any]:
    """Run query, enable, disable or new-instance on the job of `folder`.

    Args:
        args: scheduler_manage_address, json, force, yaml_config and the flags that change it.

    Returns:
        Lines for the user; for query with `args.json` all settings.

    Raises:
        UserError: no job there, no scheduler, or the command is refused with its reason.
        redis.RedisError: the job's Redis does not answer.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"no job was started from {folder}: give --folder")
    require_own(folder)
    address = _scheduler(record, args.scheduler_manage_address)
    management = Management(address, tls=record.tls_files)
    if command == "query":
        settings = management.query()
        return settings if args.json else [f"{key:32}{settings.get(key)}" for key in SHOWN]
    redis_address = parse_address(record.redis, "job record")
    store = JobStore(redis_address, record.fl_name, tls=record.tls_files)
    try:
        if command == "enable":
            return enable(management, store)
        if command == "disable":
            return disable(management, store, args.force)
        job, checkpoints = _job(folder, record, args), _checkpoint_dir(folder)
        return new_instance(management, store, job, checkpoints, args.force)
    finally:
        store.close()


def _scheduler(record: JobRecord, given: str) -> str:
    started = [process.address for process in record.running("scheduler")]
    if not given and not started:
        raise UserError(
            f"no scheduler of {record.fl_name} was started from here: start it with "
            "run_cross_silo_fasterrcnn_sched.py, or give --scheduler_manage_address"
        )
    return given or started[0]


def _job(folder: Path, record: JobRecord, args: Any) -> JobConfig:
    """Return the settings of the new instance."""
    path = args.yaml_config or folder / FOLDER / "yaml_config.yaml"
    changes = {key: getattr(args, flag, None) for flag, key in JOB_FLAGS.items()}
    job = load_job(path, {**changes, "fl_name": record.fl_name if args.yaml_config else None})
    if job.redis_address != parse_address(record.redis, "job record"):
        raise UserError(
            f"{job.path}: distributed_cache.address is not the job's Redis, {record.redis}; give "
            "this job's own file"
        )
    return job


def _checkpoint_dir(folder: Path) -> Path | None:
    """Return where the servers of `folder` keep their models; None where none was started there."""
    prefix = "--checkpoint_dir="
    for label, command in started_commands(folder).items():
        if label.startswith("server_"):
            given = [word[len(prefix) :] for word in command if word.startswith(prefix)]
            return Path(given[-1]) if given else None
    return None
