"""A client that does no work of its own, so that what remains is the servers' share."""

from __future__ import annotations

import http.client
import time
from typing import Any

from src.benchmarks.client_spec import ClientSpec
from src.federated import messages
from src.federated.replies import Outcome
from src.federated.server_requests import POLL_SECONDS
from src.federated.transport import Client

REQUEST_SECONDS = 120.0


class NullClient:
    """Sends bytes that were encoded before the round, and drops what it receives undecoded.

    What its rounds take is the servers' share: their work and the transfer at memory speed.
    """

    def __init__(self, spec: ClientSpec):
        import mindspore as ms

        self._spec = spec
        self._fl_id = f"null_{spec.number}"
        model = ms.load_checkpoint(spec.checkpoint)
        self._features = {name: value.asnumpy() for name, value in model.items()}
        self._client = Client(spec.own_addresses[:1], spec.fl_name, self._fl_id)
        self._iteration = self._client.get_model(-1, REQUEST_SECONDS).iteration - 1
        self._connection = http.client.HTTPConnection(spec.own_addresses[0], timeout=60)
        self.prepare()

    def prepare(self) -> None:
        """Encode the upload of the next iteration; room for its model."""
        self._iteration += 1
        fields: messages.Fields = {
            0: self._spec.fl_name,
            1: self._fl_id,
            2: self._iteration,
            4: "1",
        }
        body = messages.WeightsBody(fields, self._features, 1)
        self._body = b"".join(bytes(piece) for piece in body)
        self._buffer = memoryview(bytearray(len(self._body) + 65536))

    def round(self) -> dict[str, Any]:
        """One round."""
        begin = time.monotonic()
        reply = self._client.start(1, REQUEST_SECONDS)
        if reply.outcome is not Outcome.ACCEPTED or reply.iteration != self._iteration:
            raise RuntimeError(f"iteration {self._iteration} was not joined: {reply}")
        joined = time.monotonic()
        if messages.decode(self._buffer[: self._post("/updateModel", self._body)]).code != 200:
            raise RuntimeError("the upload was refused")
        sent = time.monotonic()
        asked = self._await_model()
        end = time.monotonic()
        phases = {
            "join": joined - begin,
            "upload": sent - joined,
            "wait": asked - sent,
            "download": end - asked,
        }
        return {"begin": begin, "end": end, "phases": phases, "client_s": 0.0}

    def _await_model(self) -> float:
        """Ask until the model came; the time when the successful request began."""
        body = messages.encode({0: self._spec.fl_name, 1: self._iteration, 2: "1"})
        deadline = time.monotonic() + REQUEST_SECONDS
        while time.monotonic() < deadline:
            asked = time.monotonic()
            if self._post("/getModel", body) >= len(self._body) // 2:
                return asked
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"no model of iteration {self._iteration}")

    def _post(self, path: str, body: bytes) -> int:
        """Length of the answer, which is left in the buffer."""
        self._connection.request("POST", path, body=body)
        with self._connection.getresponse() as response:
            done = 0
            while count := response.readinto(self._buffer[done:]):
                done += count
        return done
