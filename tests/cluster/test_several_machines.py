"""A job on several machines: coordinator, servers and silos in network namespaces of their own.

Redis, the scheduler and the servers have addresses that the silos reach through routers which
translate addresses and let nothing in; the launchers and the tiny detector are the real ones.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from certificate_files import make_certificates, write_tls_job
from commands import SCHED, SERVER, WORKER, run, succeed, wait_for, write_job
from gate_process import start_command, why_no_gate
from launched_job import CONFIG, PATIENCE_S, JobFolder
from models import assert_same_model, read_model
from namespaces import Machine, Network, why_no_namespaces, why_no_translation

from src.job.recovery_files import list_recovery_files
from src.launch.redis_store import REDIS_CONFIG, redis_binary

pytestmark = pytest.mark.slow  # each starts a whole federation, about a minute

COORDINATOR, SECOND, OUTSIDE = "10.77.0.2", "10.77.0.3", ("10.77.0.11", "10.77.0.12")
INSIDE = "192.168.1.2"  # of each silo: two organisations may well use the same addresses
REDIS_PORT, PORT = 2345, 6668


class Site(JobFolder):
    """A machine with a folder, from which its operator calls the scripts."""

    def __init__(self, machine: Machine, folder: Path):
        super().__init__(folder)
        self.machine = machine
        folder.mkdir()

    def call(self, script: str, *flags: str) -> str:
        return succeed(self.folder, script, *flags, timeout=PATIENCE_S, through=self.machine.prefix)

    def preflight(self, *flags: str) -> tuple[int, str]:
        done = run(self.folder, "tools/preflight.py", *flags, through=self.machine.prefix)
        return done.returncode, done.stdout


class Federation:
    """The sites of a job; `write` lays its file into every folder."""

    def __init__(self, network: Network, tmp_path: Path, shards: Path):
        self.folder, self.shards = tmp_path, shards
        self.network = network
        self.coordinator = Site(network.machine("coordinator", COORDINATOR), tmp_path / "hub")
        # A machine without nft has no routers: silos are on the backbone then.
        hidden = not why_no_translation()
        self.silos = [
            Site(
                network.machine(f"silo_{n}", INSIDE, OUTSIDE[n])
                if hidden
                else network.machine(f"silo_{n}", OUTSIDE[n]),
                tmp_path / f"silo_{n}",
            )
            for n in range(2)
        ]
        self.known_servers = [[f"--http_server_address={COORDINATOR}:{PORT}", "--server_num=2"]] * 2

    def write(self, site: Site, iterations: int) -> Path:
        path = write_job(site.folder, REDIS_PORT, iterations)
        address = f"{COORDINATOR}:{REDIS_PORT}"
        path.write_text(path.read_text().replace(f"127.0.0.1:{REDIS_PORT}", address))
        return path

    def start_redis(self, address: str = COORDINATOR, port: int = REDIS_PORT) -> None:
        flags = ["--port", str(port), "--bind", address, "--protected-mode", "no"]
        command = [redis_binary(), str(REDIS_CONFIG), *flags]
        self.coordinator.machine.start(command, self.folder, self.folder / "redis.log")
        log = self.folder / "redis.log"
        wait_for(lambda: "Ready to accept" in log.read_text(), 30, "Redis")

    def start_scheduler(self, *flags: str) -> None:
        address = f"--scheduler_manage_address={COORDINATOR}:18019"
        self.coordinator.call(SCHED, address, *flags)

    def start_servers(self, site: Site, count: int, *flags: str) -> None:
        address = site.machine.address
        listen = [f"--http_server_address={address}:{PORT}", f"--tcp_server_ip={address}"]
        site.call(SERVER, *listen, CONFIG, f"--local_server_num={count}", *flags)

    def worker_flags(self, number: int) -> list[str]:
        return [
            CONFIG,
            f"--dataset_path={self.shards}",
            *self.known_servers[number],
            "--local_worker_num=1",
            f"--first_worker_id={number}",
            f"--silo_name=hospital_{number}",
            "--threads=1",
        ]

    def start_silos(self, *flags: str) -> None:
        for number, site in enumerate(self.silos):
            # Returns once a server has let it in, which needs nobody else.
            site.call(WORKER, *self.worker_flags(number), *flags)


@pytest.fixture
def federation(tmp_path, shards):
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    with Network() as network:
        yield Federation(network, tmp_path, shards)


def assert_all_is_done(federation: Federation, sites: list[Site], iterations: int) -> None:
    """Every process ends well, every silo went through every iteration, all have one model."""
    for site in sites:
        site.wait_for_end()
        codes = site.exit_codes()
        assert codes and set(codes.values()) == {0}, (site.folder, codes)
    models = []
    for number, site in enumerate(federation.silos):
        label = f"worker_{number}"
        assert site.results(label) == [(n, "aggregated") for n in range(1, iterations + 1)]
        models.append(site.model(label, iterations))
    assert_same_model(*models)
    newest = [
        found[0]
        for site in sites
        if (found := list_recovery_files(site.folder / "fl_ckpt", "FasterRCNN"))
    ]
    (last,) = (file.path for file in newest if file.iteration == iterations)
    of_servers = read_model(last)
    shared = set(of_servers) & set(models[0])
    assert "rcnn.cls_scores.weight" in shared
    for name in shared:
        np.testing.assert_array_equal(of_servers[name].reshape(-1), models[0][name].reshape(-1))


def in_training(status: dict, iteration: int) -> bool:
    return status.get("phase") == "train" and status.get("iteration", 0) >= iteration


def test_a_silo_is_cut_off_within_an_iteration_and_all_iterations_are_done(federation):
    iterations = 4
    sites = [federation.coordinator, *federation.silos]
    first, second = federation.silos
    for site in sites:
        federation.write(site, iterations)
    federation.start_redis()
    federation.start_scheduler()
    federation.start_servers(federation.coordinator, 2)
    code, said = first.preflight("--role=worker", *federation.worker_flags(0))
    assert code == 0, said
    assert "64 kB pass in both directions" in said
    federation.start_silos("--client_epoch_num=20", "--request_timeout=10")
    wait_for(
        lambda: in_training(second.status("worker_1"), 2), PATIENCE_S, "training in iteration 2"
    )
    second.machine.cut_off()
    wait_for(lambda: "unreachable: " in second.log("worker_1"), PATIENCE_S, "the silo's word")
    time.sleep(5)
    code, said = second.preflight("--role=worker", *federation.worker_flags(1))
    assert f"let pass TCP connections from {second.machine.address} to port" in said
    second.machine.reconnect()
    assert_all_is_done(federation, sites, iterations)
    assert "finished: 4 iterations" in second.log("worker_1")
    assert "waiting for the others of 2 silos in iteration" in first.log("worker_0")


def test_servers_on_two_machines(federation):
    iterations = 3
    second = Site(federation.network.machine("second", SECOND), federation.folder / "second")
    sites = [federation.coordinator, second, *federation.silos]
    for site in sites:
        federation.write(site, iterations)
    federation.start_redis()
    shared = f"--checkpoint_dir={federation.coordinator.folder / 'fl_ckpt'}"
    federation.start_servers(federation.coordinator, 1, shared)
    federation.start_servers(second, 1, shared, "--resume")
    # Each silo knows one server only.
    addresses = (COORDINATOR, SECOND)
    federation.known_servers = [[f"--http_server_address={one}:{PORT}"] for one in addresses]
    federation.start_silos()
    assert_all_is_done(federation, sites, iterations)


def test_with_encrypted_connections(federation):
    """The silos know the servers by a name, and have of all certificates the authority's alone."""
    iterations, name = 2, "federation.example.org"
    hosts = [COORDINATOR, name]
    certificates = make_certificates(federation.folder / "certificates", hosts=hosts)
    only_authority = federation.folder / "authority"
    only_authority.mkdir()
    (only_authority / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
    sites = [federation.coordinator, *federation.silos]
    for site in sites:
        at_hub = site is federation.coordinator
        write_tls_job(
            federation.write(site, iterations), certificates if at_hub else only_authority
        )
    federation.start_redis("127.0.0.1", REDIS_PORT + 1)
    start_front(federation, certificates)
    secret = f"--ssl_passwords={certificates / 'passwords'}"
    federation.start_scheduler(secret)
    federation.start_servers(federation.coordinator, 2, secret)
    for site in federation.silos:
        site.machine.knows(name, COORDINATOR)
    servers = [f"--http_server_address={name}:{PORT}", "--server_num=2"]
    federation.known_servers = [servers] * 2
    code, said = federation.silos[0].preflight("--role=worker", *federation.worker_flags(0))
    assert code == 0 and "64 kB pass in both directions" in said, said
    federation.start_silos()
    assert_all_is_done(federation, sites, iterations)


def test_two_organisations_through_the_gate(federation, tmp_path):
    """Set up by the commands of the guide: kits, roster, gate; Redis and servers on 127.0.0.1."""
    reason = why_no_gate(tmp_path)
    if reason:
        pytest.skip(reason)
    iterations, hub = 2, federation.coordinator
    names = ("hospital_a", "hospital_b")
    path = write_job(hub.folder, REDIS_PORT, iterations)
    kits = [f"--silos={','.join(names)}", f"--hosts={COORDINATOR}", f"--yaml_config={path}"]
    hub.call("tools/make_certificates.py", "--out=certificates", *kits)
    made = ["--yaml_config=certificates/federation.yaml", "--roster=certificates/silos.yaml"]
    hub.call("tools/make_gate.py", *made, f"--listen={COORDINATOR}:{PORT}", "--local_server_num=2")
    federation.start_redis("127.0.0.1")
    behind = ["--yaml_config=gate/federation.yaml", "--roster=certificates/silos.yaml"]
    listen = [f"--http_server_address=127.0.0.1:{PORT}", "--tcp_server_ip=127.0.0.1"]
    # All of which they wait: they do not see through the gate that the silos have left.
    hub.call(SERVER, CONFIG, *behind, *listen, "--local_server_num=2", "--fetch_timeout=15")
    command, log = start_command(hub.folder / "gate"), hub.folder / "gate/nginx.log"
    hub.machine.start(command, hub.folder, log)
    wait_for(lambda: (hub.folder / "gate/nginx.pid").exists(), 30, "nginx")
    for number, (site, name) in enumerate(zip(federation.silos, names)):
        shutil.copytree(hub.folder / "certificates" / name, site.folder / name)
        kit = [f"--yaml_config={name}/federation.yaml", f"--roster={name}/silos.yaml"]
        flags = [flag for flag in federation.worker_flags(number) if "silo_name" not in flag]
        known = [*flags, *kit, f"--ssl_passwords={name}/passwords"]
        code, said = site.preflight("--role=worker", *known)
        assert code == 0 and "64 kB pass in both directions" in said, said
        code, said = site.preflight("--role=worker", *flags, kit[0])  # shows no certificate
        assert code == 2 and "the gate does not let this silo in: it wants a certificate" in said
        site.call(WORKER, *known)
    assert_all_is_done(federation, [hub, *federation.silos], iterations)
    lines = (hub.folder / "gate/access.log").read_text().splitlines()
    for number, name in enumerate(names):
        by = f'silo="{name}" fl_id="{name}_{number} ('
        sent = [one for one in lines if by in one and "POST /updateModel 200 " in one]
        assert len(sent) >= iterations, lines


def start_front(federation: Federation, certificates: Path) -> None:
    """TLS before Redis, on the coordinator's machine."""
    front = Path(__file__).resolve().parents[1] / "helpers" / "tls_front.py"
    addresses = [f"{COORDINATOR}:{REDIS_PORT}", f"127.0.0.1:{REDIS_PORT + 1}"]
    files = [str(certificates / "redis.crt"), str(certificates / "redis.key")]
    log = federation.folder / "front.log"
    command = [sys.executable, str(front), *addresses, *files]
    federation.coordinator.machine.start(command, federation.folder, log)
    wait_for(lambda: "TLS at" in log.read_text(), 30, "the front")
