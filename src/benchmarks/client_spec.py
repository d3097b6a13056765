"""What a client of a measured federation is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientSpec:
    """What one client is told.

    Attributes:
        kind: "ours", "engine" or "null".
        number: of the client, from 0; it talks to server number mod servers.
        clients: how many there are.
        addresses: of the servers.
        iterations: of the job.
        checkpoint: the model that travels.
        log: file for what the process prints.
    """

    kind: str
    number: int
    clients: int
    addresses: list[str]
    yaml_path: str
    fl_name: str
    iterations: int
    checkpoint: str
    log: str

    @property
    def own_addresses(self) -> list[str]:
        """The servers, this client's own first."""
        first = self.number % len(self.addresses)
        return self.addresses[first:] + self.addresses[:first]
