"""The files of deploy/ and the commands of docs/several_machines.md, held against the code."""

from __future__ import annotations

import ipaddress
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from src.errors import UserError
from src.job.job_config import PREFIX_KEY, JobConfig, load_job
from src.model_utils.config import PROJECT_DIR

DEPLOY = PROJECT_DIR / "deploy"
GUIDE = PROJECT_DIR / "docs" / "several_machines.md"
COMPOSE = sorted((DEPLOY / "compose").glob("*_tls.yaml")) + [
    DEPLOY / "compose" / "coordinator.yaml",
    DEPLOY / "compose" / "silo.yaml",
]
COMPOSE = [path for path in COMPOSE if not path.name.startswith("federation")]
FEDERATIONS = sorted(DEPLOY.rglob("federation*.yaml"))
SUITE = "/suite/"


def job_of(path: Path) -> JobConfig:
    """The job of a template, with a secret in place of what stands there for one."""
    return load_job(path, {PREFIX_KEY: "/a-secret-of-this-test/"})


def documents(path: Path) -> list[dict]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def merged(name: str) -> dict:
    """A Compose file's services, with those of its `_tls` file laid over them."""
    base, over = (documents(DEPLOY / "compose" / f"{name}{end}.yaml")[0] for end in ("", "_tls"))
    return {
        service: {**values, **over["services"].get(service, {})}
        for service, values in base["services"].items()
    }


def compose_services() -> dict[str, dict]:
    found = {}
    for name in ("coordinator", "silo"):
        plain = documents(DEPLOY / "compose" / f"{name}.yaml")[0]["services"]
        found.update({f"{name}:{service}": values for service, values in plain.items()})
        found.update({f"{name}_tls:{key}": values for key, values in merged(name).items()})
    return found


def pods() -> dict[str, dict]:
    """Kubernetes' containers, by file and name."""
    found = {}
    for path in (DEPLOY / "kubernetes").rglob("*.yaml"):
        for one in documents(path):
            if one.get("kind") == "Job":
                spec = one["spec"]["template"]["spec"]
                containers = spec.get("initContainers", []) + spec["containers"]
                found.update({f"{path.parent.name}/{path.stem}:{c['name']}": c for c in containers})
    return found


def commands() -> dict[str, list[str]]:
    """Every command of a container and each line of a sh block of the guide."""
    found = {name: one["command"] for name, one in compose_services().items()}
    found.update({name: one["command"] for name, one in pods().items() if "command" in one})
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S):
        found.update({line: shlex.split(line) for line in block.splitlines()})
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            lines = re.findall(r"^#\s+(python .*)$", path.read_text(), re.M)
            found.update({f"{path.name}: {line}": shlex.split(line) for line in lines})
    return found


COMMANDS = commands()
PYTHON = {name: words for name, words in COMMANDS.items() if words[0] == "python"}
REDIS = {name: words for name, words in COMMANDS.items() if words[0] == "redis-server"}


@cache
def known_flags(script: str) -> frozenset[str]:
    told = subprocess.run(
        [sys.executable, str(PROJECT_DIR / script), "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return frozenset(re.findall(r"--\w+", told))


def script_of(words: list[str]) -> str:
    return words[1].replace(SUITE, "")


def flags_of(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


def test_something_is_found():
    assert len(compose_services()) == 10 and len(pods()) >= 4
    assert len(PYTHON) > 15 and len(REDIS) >= 5 and len(FEDERATIONS) == 6


@pytest.mark.parametrize("words", PYTHON.values(), ids=PYTHON)
def test_every_script_and_flag_exists(words):
    script = script_of(words)
    assert (PROJECT_DIR / script).is_file()
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= known_flags(script), given - known_flags(script)


@pytest.mark.parametrize("words", REDIS.values(), ids=REDIS)
def test_every_redis_has_the_suites_settings_and_port(words):
    assert (PROJECT_DIR / words[1].replace(SUITE, "")).is_file()
    options = dict(zip(words[2::2], words[3::2]))
    port = options["--tls-port"] if options["--port"] == "0" else options["--port"]
    assert port == "2345"


@pytest.mark.parametrize("path", FEDERATIONS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_federation_file_is_valid(path):
    job = job_of(path)
    encrypted = path.stem.endswith("_tls") or path.parent.name == "tls"
    assert (job.tls is not None) == encrypted
    plain = path.with_name("federation.yaml")
    if path.parent.name == "tls":
        plain = DEPLOY / "kubernetes" / "plain" / "federation.yaml"
    other = job_of(plain)
    for key in ("fl_name", "distributed_cache.address", "round.start_fl_job_threshold"):
        assert job[key] == other[key]


def test_the_federation_files_name_the_redis_of_their_place():
    addresses = {
        path.parent.name: "{}:{}".format(*job_of(path).redis_address) for path in FEDERATIONS
    }
    coordinator = documents(DEPLOY / "compose" / "coordinator.yaml")[0]
    redis = coordinator["services"]["redis"]["networks"]["inner"]["ipv4_address"]
    assert addresses["compose"] == f"{redis}:2345"
    assert addresses["plain"] == addresses["tls"] == "127.0.0.1:2345"
    assert addresses["machines"] == "127.0.0.1:2345"
    assert "Write `10.0.0.2:2345` into the file" in GUIDE.read_text()
    for words in (values["command"] for values in (merged("coordinator")["redis"],)):
        assert redis in words


def test_containers_listen_on_their_own_fixed_address():
    coordinator = documents(DEPLOY / "compose" / "coordinator.yaml")[0]
    (config,) = coordinator["networks"]["inner"]["ipam"]["config"]
    subnet = ipaddress.ip_network(config["subnet"])
    for services in (coordinator["services"], merged("coordinator")):
        for name, service in services.items():
            own = service["networks"]["inner"]["ipv4_address"]
            assert ipaddress.ip_address(own) in subnet and not own.endswith((".0", ".1", ".255"))
            text = " ".join(service["command"])
            listening = re.findall(r"(?:address=|ip=|--bind )(\d+\.\d+\.\d+\.\d+)", text)
            assert listening and set(listening) == {own}, name


def test_published_ports_are_those_of_the_servers():
    for services in (merged("coordinator"), documents(COMPOSE[-2])[0]["services"]):
        flags = flags_of(services["servers"]["command"])
        first = int(flags["--http_server_address"].rsplit(":", 1)[1])
        last = first + int(flags["--local_server_num"]) - 1
        published = f"${{BIND:-127.0.0.1}}:{first}-{last}:{first}-{last}"
        assert services["servers"]["ports"] == [published]
        assert not any("ports" in values for name, values in services.items() if name != "servers")
    silo = documents(DEPLOY / "compose" / "silo.yaml")[0]["services"]["worker"]
    worker = flags_of(silo["command"])
    assert worker["--http_server_address"].endswith(f":{first}")
    assert int(worker["--server_num"]) == last - first + 1
    assert "ports" not in silo


def test_kubernetes_ports_agree():
    found = {one["kind"]: one for one in documents(DEPLOY / "kubernetes/plain/coordinator.yaml")}
    servers = pods()["plain/coordinator:servers"]
    flags = flags_of(servers["command"])
    assert flags["--http_server_address"] == "$(POD_IP):6668"
    (own,) = (one for one in servers["env"] if one["name"] == "POD_IP")
    assert own["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    ports = {one["name"]: one["containerPort"] for one in servers["ports"]}
    assert len(ports) == int(flags["--local_server_num"])
    served = {one["targetPort"]: one["port"] for one in found["Service"]["spec"]["ports"]}
    assert served == ports
    (admitted,) = found["NetworkPolicy"]["spec"]["ingress"][0]["ports"]
    assert (admitted["port"], admitted["endPort"]) == (min(ports.values()), max(ports.values()))
    labels = found["Job"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    silo = flags_of(pods()["kubernetes/silo:worker"]["command"])
    assert silo["--http_server_address"] == "federation-servers.federation.svc:6668"
    assert int(silo["--server_num"]) == len(ports)


def test_kubernetes_volumes_and_files_exist():
    for path in (DEPLOY / "kubernetes").rglob("*.yaml"):
        for one in documents(path):
            if one.get("kind") == "Kustomization":
                names = [*one["resources"], *(patch["path"] for patch in one.get("patches", []))]
                names += [f for made in one["configMapGenerator"] for f in made["files"]]
                assert all((path.parent / name).exists() for name in names)
            if one.get("kind") == "Job" and path.parent.name != "tls":
                spec = one["spec"]["template"]["spec"]
                volumes = {volume["name"] for volume in spec["volumes"]}
                for container in spec.get("initContainers", []) + spec["containers"]:
                    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_compose_volumes_and_files_exist():
    for path in COMPOSE:
        found = documents(path)[0]
        for service in found["services"].values():
            for volume in service.get("volumes", []):
                source = re.sub(r"\$\{[^}]*\}", "/data", volume).split(":")[0]
                if source.startswith("./certificates"):
                    continue  # what make_certificates.py writes
                known = source in found.get("volumes", {}) or source.startswith("/")
                assert known or (path.parent / source).exists(), (path, volume)


def test_images_and_users():
    images = {
        one["image"] for one in (*compose_services().values(), *pods().values()) if "image" in one
    }
    assert images == {"cross-silo-faster-rcnn"}
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines]
    builder, uid = (one[1].split(":")[0] for one in words if one[:1] == ["USER"])
    assert builder.isdigit() and uid.isdigit() and len({builder, uid, "0"}) == 3
    installed = next(n for n, line in enumerate(lines) if line.startswith("RUN make install"))
    assert lines.index(f"USER {builder}:{builder}") < installed < lines.index(f"USER {uid}:{uid}")
    assert f"COPY --chown={builder}:{builder} . ." in lines  # its runtime user cannot change it
    assert "FROM python:3.9-slim-bookworm" in lines
    for path in (DEPLOY / "kubernetes/plain/coordinator.yaml", DEPLOY / "kubernetes/silo.yaml"):
        (job,) = (one for one in documents(path) if one["kind"] == "Job")
        assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(uid)


def taken_into_the_image(names: list[str]) -> list[str]:
    """Those that Docker copies: of the patterns that fit a file or a folder above it, the last."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    patterns = [(rule.startswith("!"), _expression(rule.lstrip("!"))) for rule in rules]
    return [
        name
        for name in names
        if [taken for taken, pattern in patterns if pattern.fullmatch(name)][-1:] != [False]
    ]


def _expression(pattern: str) -> re.Pattern:
    words = {"**/": "(?:.*/)?", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*)", pattern)
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


LEFT_BY_USERS = [
    "train2017/000000000009.jpg", "val2017/1.jpg", "annotations/instances_train2017.json",
    "instances_val.json", "datasets/a/b.jpg", "fl_ckpt/FasterRCNN_recovery_iteration_1.ckpt",
    "fl_ckpt_small/x.ckpt", "resnet50.ckpt", "backbone.pth", "detector.onnx", "report.html",
    "worker_0/ckpt/mindrecord_0/resume.safetensors", "server_0/server.log", "scheduler/x.log",
    ".federation/specs/worker_0.json", "certificates/ca.key", "deploy/machines/certificates/a.p12",
    "detected/1.png", "detections/1.png", "hospital/scan.png", "notes.txt", "silo.yaml",
    ".git/config", ".venv/bin/python", ".hypothesis/x", "demo_run/a.log", "found.json",
    "metrics.jsonl", "my.py",
    "deploy/compose/silo.env", "configs/hospital.yaml", "src/model.ckpt", "src/data/images/1.jpg",
    "src/data/__pycache__/a.pyc", "tools/key.pem", "src/certificates/client.p12", "src/x.key",
    "wheelhouse/scan.png", "tests/unit/federated/test_silo.py", "README.md",
]  # fmt: skip


def test_the_image_gets_the_suite_and_nothing_that_users_leave_in_its_folder():
    code = [
        str(path.relative_to(PROJECT_DIR))
        for folder in ("src", "tools")
        for path in (PROJECT_DIR / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".j2")
    ]
    scripts = [path.name for path in PROJECT_DIR.glob("*.py")]
    read = [str(path.relative_to(PROJECT_DIR)) for path in (PROJECT_DIR / "configs").rglob("*.*")]
    needed = ["Makefile", "requirements.lock", "default_config.yaml", "default_yaml_config.yaml"]
    needed += [*code, *scripts, *read, "wheelhouse/numpy-1.23.5-cp39-cp39-linux_x86_64.whl"]
    assert len(code) > 200 and taken_into_the_image(needed) == needed
    assert taken_into_the_image(LEFT_BY_USERS) == []


def test_no_secret_is_written_down():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"FL_\w+_PASSWORD\s*[:=]\s*\S", path.read_text()), path
    for name, words in PYTHON.items():
        assert not any("password" in word.lower() and "=" in word and "/" not in word
                       for word in words), name  # fmt: skip


def test_roles_stay_in_the_foreground_and_go_on_after_a_restart():
    for name, one in {**compose_services(), **pods()}.items():
        words = one.get("command", [])
        if words and words[0] == "python" and "run_cross" in words[1]:
            assert "--foreground" in words, name
            assert ("--resume" in words) == ("sched" not in words[1]), name


@pytest.mark.parametrize("name", ["federation", "federation_tls"])
def test_the_files_for_machines_want_a_secret_path_before_they_are_taken(name):
    with pytest.raises(UserError, match="http_url_prefix is the template's placeholder"):
        load_job(DEPLOY / "machines" / f"{name}.yaml")


def test_a_wrong_file_would_be_found(tmp_path):
    text = (DEPLOY / "machines" / "federation.yaml").read_text()
    path = tmp_path / "federation.yaml"
    path.write_text(text.replace("127.0.0.1:2345", "redis:2345"))
    with pytest.raises(UserError, match="distributed_cache.address"):
        job_of(path)
    assert "--resumee" not in known_flags("run_cross_silo_fasterrcnn_server.py")
