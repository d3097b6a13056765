"""Addresses as the engine takes them, and ports that must be free."""

import socket

import pytest

from src.errors import UserError
from src.job.addresses import parse_address, require_free_port, server_addresses


def test_addresses_of_the_servers():
    assert parse_address("127.0.0.1:6668", "--flag") == ("127.0.0.1", 6668)
    assert server_addresses("127.0.0.1:6668", 2) == ["127.0.0.1:6668", "127.0.0.1:6669"]
    assert server_addresses("10.0.0.1:1, fl.bank.example:2", 1) == [
        "10.0.0.1:1",
        "fl.bank.example:2",
    ]


@pytest.mark.parametrize(
    "address", ["localhost:1", "0.0.0.0:1", "1.2.3.255:1", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:99999"]
)
def test_address_that_the_engine_refuses(address):
    with pytest.raises(UserError, match="--flag: "):
        parse_address(address, "--flag")


def test_several_addresses_and_a_number_are_refused():
    with pytest.raises(UserError, match="give the addresses or their number"):
        server_addresses("127.0.0.1:1,127.0.0.1:2", 2)


def test_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}"):
            require_free_port("127.0.0.1", port, "--flag")
    require_free_port("127.0.0.1", port, "--flag")
