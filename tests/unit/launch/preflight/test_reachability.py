"""What a silo's operator is told of servers, and of addresses that cannot be."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from commands import write_job
from ports import free_ports
from stand_ins import SUCCESS, StandIn, model_reply, read_request

from src.errors import UserError
from src.job.addresses import own_addresses, parse_ip, require_free_port, require_worker_address
from src.job.checks import run_checks
from src.job.job_config import load_job
from src.launch.preflight.network import (
    exchange_large,
    own_address,
    reach_checks,
    servers_answer,
    why_not_reached,
)
from src.model_utils.config import load_config


@contextlib.contextmanager
def answering(
    ahead_s: float = 0.0,
    breaks_off: bool = False,
    status: int = 200,
    body: bytes = b"The cluster is in safemode.",
):
    """A server whose clock is `ahead_s` seconds ahead; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "gate/7", ""

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if not breaks_off:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def date_time_string(self, timestamp=None):
            return super().date_time_string(time.time() + ahead_s)

        def log_message(self, *_):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def checks_of(tmp_path, port: int):
    flags = load_config(None)
    flags.http_server_address, flags.server_num = f"127.0.0.1:{port}", 1
    flags.join_timeout, flags.start_timeout = 600.0, 300.0
    return reach_checks(load_job(write_job(tmp_path, 2345, 3)), flags)


def checked(tmp_path, port: int):
    return [check.run() for check in checks_of(tmp_path, port)]


def test_a_port_without_a_listener():
    (port,) = free_ports(1)
    assert why_not_reached("127.0.0.1", port).startswith("connection refused: nothing listens")
    with socket.create_server(("127.0.0.1", port)):
        assert why_not_reached("127.0.0.1", port) == ""


def test_a_listener_that_takes_no_more_connections_looks_like_a_firewall():
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        reason = why_not_reached("127.0.0.1", port, timeout_s=0.5)
    assert "no answer within" in reason
    assert f"let pass TCP connections from 127.0.0.1 to port {port} of 127.0.0.1" in reason


def test_a_name_that_nobody_knows():
    assert "does not know coordinator.invalid" in why_not_reached("coordinator.invalid", 6668)


def test_the_own_address_on_the_way():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert "127.0.0.1" in own_addresses()


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_clock_that_is_off(tmp_path, ahead):
    with answering(ahead) as port:
        servers, large = checked(tmp_path, port)
        assert servers.level == "PASS"
        assert (large.level, large.subject) == ("WARN", "messages")
        way = "behind" if ahead > 0 else "ahead of"
        assert f"s {way} the server's" in large.text and "timedatectl" in large.text


@pytest.mark.parametrize(
    "body",
    [
        b"The cluster is in safemode.",
        b"The server's training job is disabled or finished.",
        SUCCESS,
        model_reply() + bytes(100_000),
    ],
)
def test_a_good_server(tmp_path, body):
    with answering(body=body) as port:
        assert [f.level for f in checked(tmp_path, port)] == ["PASS", "PASS"]


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0.0, "PASS", "MB that a silo sends in a round take"),
        (0.2, "PASS", "s at "),
        (3.0, "WARN", "use a line of 2.2 Mbit/s"),
    ],
)
def test_the_line_is_timed(tmp_path, monkeypatch, seconds, level, words):
    """A server that takes so many seconds for each 64 kB, as behind a slow line."""

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            for _ in range(int(self.headers["Content-Length"]) // 65536):
                self.rfile.read(65536)
                time.sleep(seconds / 8)
            self.send_response(200)
            self.send_header("Content-Length", str(len(SUCCESS)))
            self.end_headers()
            self.wfile.write(SUCCESS)

        def log_message(self, *_):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, large = checked(tmp_path, server.server_port)
        server.shutdown()
    assert large.level == level and words in large.text


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b"<html>no</html>", "HTTP status 403 Forbidden, Server: gate/7"),
        (404, SUCCESS, "HTTP status 404 Not Found, Server: gate/7"),
        (200, b"<html>welcome</html>", "HTTP status 200 OK, Server: gate/7"),
        (200, b"", "HTTP status 200 OK, Server: gate/7"),
    ],
)
def test_another_web_server_in_their_place(tmp_path, status, body, words):
    with answering(status=status, body=body) as port:
        (servers,) = run_checks(checks_of(tmp_path, port))  # messages would say the same
        assert servers.level == "FAIL"
        assert f"at 127.0.0.1:{port} no server of a job answers" in servers.text
        assert words in servers.text and "/startFLJob" in servers.text
        assert words in exchange_large("127.0.0.1", port, "FasterRCNN", None)[0]


def test_a_proxy_whose_server_is_not_there_yet_is_waited_for(tmp_path):
    with answering(status=502, body=b"<html>bad gateway</html>") as port:
        servers, large = checked(tmp_path, port)
    assert servers.level == "WARN" and "their launcher ends after 300 s" in servers.text
    assert "HTTP status 502 Bad Gateway, Server: gate/7" in servers.text
    assert large.text == "no server to try it with"


def test_a_service_that_is_no_web_server(tmp_path):
    def greet(connection):
        read_request(connection)  # closing with unread bytes would break the connection off
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with StandIn(greet) as service:
        servers, _ = checked(tmp_path, int(service.address.split(":")[1]))
    assert servers.level == "FAIL"
    assert "does not speak HTTP ('SSH-2.0-OpenSSH_9.6\\r\\n')" in servers.text


def test_large_messages_that_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("src.launch.preflight.network.ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        reason, _ = exchange_large("127.0.0.1", port, "FasterRCNN", None)
        assert "64 kB do not get through" in reason and "MTU" in reason


def test_a_server_that_breaks_off(tmp_path):
    with answering(breaks_off=True) as port:
        _, large = checked(tmp_path, port)
    assert large.level == "WARN" and "breaks off a request" in large.text


def test_each_missing_server_is_named(tmp_path):
    job = load_job(write_job(tmp_path, 2345, 3))
    first, second = free_ports(2)
    flags = SimpleNamespace(
        http_server_address=f"127.0.0.1:{first},127.0.0.1:{second}",
        server_num=1,
        join_timeout=600.0,
        start_timeout=300.0,
    )
    with socket.create_server(("127.0.0.1", first)):
        found = servers_answer(job, flags)
    assert f"127.0.0.1:{second}: connection refused" in found.text
    assert f"127.0.0.1:{first}:" not in found.text


@pytest.mark.parametrize("address", ["[::1]:6668", "fe80::1:6668"])
def test_ipv6_is_refused_by_its_name(address):
    with pytest.raises(UserError, match="is an IPv6 address, and the engine takes IPv4 only"):
        require_worker_address(address)
    with pytest.raises(UserError, match="--tcp_server_ip: .* is an IPv6 address"):
        parse_ip("::1", "--tcp_server_ip")


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(UserError, match="192.0.2.1 is no address of this machine, which has 127"):
        require_free_port("192.0.2.1", 6668, "--http_server_address")


def test_a_name_without_a_dot_is_refused_with_the_mend():
    with pytest.raises(UserError, match="no name without a dot, found 'coordinator'; give the who"):
        require_worker_address("coordinator:6668")
    with pytest.raises(UserError, match="127.0.0.1"):
        require_worker_address("localhost:6668")
