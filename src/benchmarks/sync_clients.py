"""Run clients that only synchronise: this suite's, the engine's own, and one that does no work.

Each runs in its own process, `run_client`, and waits for the word before every round, so that
the rounds of all clients begin together.
"""

from __future__ import annotations

import http.client
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Callable

from src.benchmarks.measure import memory_gb, reset_peak
from src.federated import messages
from src.federated.replies import Outcome
from src.federated.server_requests import POLL_SECONDS
from src.federated.transport import Client
from src.launch.supervise import die_with_parent

REQUEST_SECONDS = 120.0


class NullClient:
    """Send bytes that were encoded before the round, and drop what comes back undecoded.

    The time of its rounds is the servers' share: their work and the transfer at memory speed.
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
        """Encode the upload of the next iteration, and allocate room for its model."""
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
        """Run one round."""
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
        """Ask until the model came; return the time when the successful request began."""
        body = messages.encode({0: self._spec.fl_name, 1: self._iteration, 2: "1"})
        deadline = time.monotonic() + REQUEST_SECONDS
        while time.monotonic() < deadline:
            asked = time.monotonic()
            if self._post("/getModel", body) >= len(self._body) // 2:
                return asked
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"no model of iteration {self._iteration}")

    def _post(self, path: str, body: bytes) -> int:
        """Post a body; return the length of the answer, which is left in the buffer."""
        self._connection.request("POST", path, body=body)
        with self._connection.getresponse() as response:
            done = 0
            while count := response.readinto(self._buffer[done:]):
                done += count
        return done


@dataclass(frozen=True)
class ClientSpec:
    """Describe one client.

    Attributes:
        kind: "ours", "engine" or "null".
        number: the client's number, from 0; it talks to server number mod servers.
        clients: number of clients.
        addresses: addresses of the servers.
        iterations: number of iterations of the job.
        checkpoint: the model that is exchanged.
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
        """Return the servers, this client's own first."""
        first = self.number % len(self.addresses)
        return self.addresses[first:] + self.addresses[:first]


# Every client adds this times its number, from 1, to the first value of the last weight before it
# sends: enough to see that a round really averaged.
CHANGE = 0.5


def run_client(connection: Connection, spec: ClientSpec) -> None:
    """Run a client process: send "ready", then a round's result per word received, until None.

    A result has `begin` and `end` (time.monotonic), seconds per phase in `phases`, `client_s`, and
    `added_gb` and `peak_gb`. An error is sent as its text.
    """
    die_with_parent()
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    try:
        client = KINDS[spec.kind](spec)
        connection.send("ready")
        reset_peak()
        before = memory_gb("VmRSS")
        while connection.recv() is not None:
            result = client.round()
            result["peak_gb"] = memory_gb("VmHWM")
            result["added_gb"] = result["peak_gb"] - before
            connection.send(result)
            client.prepare()
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        raise


class _TrainingClient:
    """Call a manager's hooks as `Model.train` does, without training between them."""

    def __init__(self, spec: ClientSpec):
        import mindspore as ms
        from mindspore import nn
        from mindspore.train.callback._callback import InternalCallbackParam, RunContext

        self.spec = spec
        self.network = nn.Cell()
        for name, parameter in ms.load_checkpoint(spec.checkpoint).items():
            self.network.insert_param_to_cell(name, parameter, False)
        arguments = InternalCallbackParam()
        arguments.update(
            epoch_num=1, batch_num=1, cur_epoch_num=1, cur_step_num=1, net_outputs=None
        )
        self.context = RunContext(arguments)

    def prepare(self) -> None:
        """Do nothing: no work is left between rounds."""

    def synchronise(self, manager: Any) -> tuple[float, float, float]:
        """Run one round; return its begin, the time of joining the iteration, and its end."""
        begin = time.monotonic()
        manager.on_train_step_begin(self.context)
        joined = time.monotonic()
        before = self._change()
        manager.on_train_step_end(self.context)
        end = time.monotonic()
        mean = before + CHANGE * (self.spec.clients + 1) / 2
        after = self._last().asnumpy().flat[0]
        if abs(after - mean) > 1e-3 * max(1.0, abs(mean)):
            raise RuntimeError(f"the mean of a weight is {after}, expected {mean}")
        return begin, joined, end

    def _last(self) -> Any:
        from src.federated.fingerprint import FEATURE_NAME

        # Servers refuse a model with another fingerprint.
        weights = [p for p in self.network.trainable_params() if p.name != FEATURE_NAME]
        return weights[-1]

    def _change(self) -> float:
        """Change one weight as training would; return its old value."""
        from mindspore import Tensor

        array = self._last().asnumpy().copy()
        before = float(array.flat[0])
        array.flat[0] += CHANGE * (self.spec.number + 1)
        self._last().set_data(Tensor(array))
        return before


class OurClient(_TrainingClient):
    """Synchronise with `SiloManager`."""

    def __init__(self, spec: ClientSpec):
        super().__init__(spec)
        from src.federated.manager import SiloManager
        from src.federated.silo import SiloSettings
        from src.federated.transport import Client

        self._encode_s = 0.0
        client = self

        class Timed(SiloManager):
            def _model_params_to_weights_dict(self, weights: dict, weight_infos: dict) -> None:
                begin = time.perf_counter()
                super()._model_params_to_weights_dict(weights, weight_infos)
                client._encode_s = time.perf_counter() - begin

        self._manager = Timed(
            spec.yaml_path,
            self.network,
            1,
            Client(spec.own_addresses, spec.fl_name, f"ours_{spec.number}"),
            SiloSettings(1, spec.iterations, spec.clients, spec.number),
        )

    def round(self) -> dict[str, Any]:
        """Run one round."""
        begin, joined, end = self.synchronise(self._manager)
        record = self._manager.rounds[-1]
        if record.result != "aggregated":
            raise RuntimeError(record.line())
        phases = {
            "join": joined - begin,
            "upload": record.upload_s,
            "wait": record.wait_s,
            "download": record.download_s,
        }
        own = record.client_s + self._encode_s
        return {"begin": begin, "end": end, "phases": phases, "client_s": own}


class _TimedBinding:
    """Wrap the engine's binding and record the seconds and processor time of a call."""

    def __init__(self, binding: Any):
        self._binding = binding
        self.seconds: dict[str, float] = {}
        self.user_s = 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._binding, name)

        def call(*arguments: Any) -> Any:
            begin, user = time.perf_counter(), os.times().user
            result = function(*arguments)
            self.seconds[name] = time.perf_counter() - begin
            self.user_s += os.times().user - user
            return result

        return call


class EngineClient(_TrainingClient):
    """Synchronise with `mindspore_federated.FederatedLearningManager` as it is.

    Its own work is what happens outside the binding (lists made of arrays, arrays of lists, the
    load) and the processor time in user mode within it (lists read, message built and read).
    """

    def __init__(self, spec: ClientSpec):
        super().__init__(spec)
        from mindspore_federated import FederatedLearningManager
        from mindspore_federated.trainer import _fl_manager

        self._binding = _fl_manager.Federated_ = _TimedBinding(_fl_manager.Federated_)
        self._manager = FederatedLearningManager(
            spec.yaml_path, self.network, 1, spec.own_addresses[0], data_size=1
        )

    def round(self) -> dict[str, Any]:
        """Run one round."""
        self._binding.user_s = 0.0
        begin, joined, end = self.synchronise(self._manager)
        inside = self._binding.seconds["update_and_get_model"]
        lists = end - joined - inside
        phases = {"join": joined - begin, "lists": lists, "upload to download": inside}
        own = lists + self._binding.user_s
        return {"begin": begin, "end": end, "phases": phases, "client_s": own}


KINDS: dict[str, Callable[[Any], Any]] = {
    "ours": OurClient,
    "engine": EngineClient,
    "null": NullClient,
}
