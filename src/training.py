"""A silo's training task: its data, its detector, the training step, the logging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.dataset import Dataset
from mindspore.train.callback import Callback, RunContext

from src.data.coco_boxes import class_words
from src.data.mindrecord import (
    BASE_NAME,
    check_mindrecord,
    odd_objects,
    require_objects,
    shard_number,
)
from src.dataset import count_objects, create_fasterrcnn_dataset
from src.errors import UserError, user_path
from src.evaluation.evaluator import Evaluator
from src.evaluation.validation_set import open_validation
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.federated.aggregation import Aggregation
from src.federated.algorithms import NO_TERMS, Terms
from src.federated.checkpoints import save_network
from src.federated.fingerprint import (
    FEATURE_NAME,
    FROZEN_ASPECT,
    LOCAL_ASPECT,
    digest,
    fingerprint,
    key_aspects,
    opened,
    require_trainable,
)
from src.files import reason, whole_file
from src.job.job_record import StatusFile
from src.job.log_files import rotation
from src.job.recovery_files import ORIGIN_NAME, InitialOrigin
from src.lr_schedule import run_lr
from src.model_utils.config import Config, setting
from src.model_utils.device_adapter import use_device
from src.network_define import LossCallBack, mean_loss, steps_of_call, train_cell
from src.weights.head_classes import SCORES
from src.weights.local_params import local_names
from src.weights.pretrained import load_pretrained, read_checkpoint


def open_shard(
    config: Config, shard: Path, ranks: int = 1, rank: int = 0, steps_done: int = 0
) -> Dataset:
    """Open the training batches of the MindRecord in the folder `shard`.

    Args:
        ranks: number of ranks that share it; each has the same number of batches.
        rank: the rank whose share this is.
        steps_done: number of batches to skip at the beginning.

    Raises:
        UserError: there is no usable MindRecord.
    """
    return create_fasterrcnn_dataset(
        config,
        str(shard / (config.prefix or BASE_NAME)),
        batch_size=config.batch_size,
        device_num=ranks,
        rank_id=rank,
        num_parallel_workers=config.num_parallel_workers,
        python_multiprocessing=config.python_multiprocessing,
        batches_done=steps_done,
    )


def build_detector(config: Config) -> tuple[nn.Cell, str]:
    """Build the detector in training mode, from the seed and `config.pre_trained`.

    Returns:
        The network, and a line that says where its weights come from.

    Raises:
        UserError: the checkpoint is missing, broken or belongs to another model.
    """
    net = Faster_Rcnn_Resnet(config)
    net.set_train()
    if not config.pre_trained:
        return net, f"weights initialized from seed {config.seed}"
    path = user_path(config.pre_trained)
    content = read_checkpoint(path)
    mark, scores = content.get(FEATURE_NAME), content.get(SCORES[1])
    require_trainable(
        config,
        None if mark is None else mark.asnumpy(),
        None if scores is None else scores.size,
        path,
    )
    return net, str(load_pretrained(net, path, config.coco_classes, content))


def shared_aspects(config: Config, net: nn.Cell) -> dict[str, object]:
    """Return what must be equal in all silos but is not exchanged; see `fingerprint`."""
    aspects = key_aspects(config)
    names = [p.name for p in net.trainable_params()]
    aspects[LOCAL_ASPECT] = sorted(local_names(names, setting(config, "local_params")))
    frozen = {p.name: p.asnumpy() for p in net.get_parameters() if not p.requires_grad}
    aspects[FROZEN_ASPECT] = digest(frozen)
    return aspects


def save_models(
    net: nn.Cell,
    config: Config,
    servers: Path,
    workers: Path,
    aggregation: Aggregation,
    origin: InitialOrigin | None = None,
) -> int:
    """Write the servers' initial model (the federated parameters) and the complete detector.

    Both hold the fingerprint of their training settings. The servers' model is marked open if it
    was made without a checkpoint, unless servers add uploads to it.

    Args:
        origin: stored in the complete detector's file, for the server launcher.

    Returns:
        The number of federated parameters.
    """
    trained = net.trainable_params()
    local = local_names([p.name for p in trained], setting(config, "local_params"))
    travelling = [{"name": p.name, "data": p} for p in trained if p.name not in local]
    weights = {p.name: p.asnumpy() for p in trained if p.name not in local}
    extra = aggregation.server_features(weights)
    mark = fingerprint({**shared_aspects(config, net), **aggregation.aspects()})
    is_open = not config.pre_trained and not aggregation.facts.adds_uploads
    extra[FEATURE_NAME] = opened(mark) if is_open else mark
    own = {} if origin is None else {ORIGIN_NAME: origin.packed()}
    features = [*travelling, *({"name": n, "data": Tensor(a)} for n, a in extra.items())]
    for target, write in (
        (workers, lambda path: save_network(net, path, mark, own)),
        (servers, lambda path: ms.save_checkpoint(features, str(path))),
    ):
        try:
            with whole_file(target, durable=True) as partial:
                write(partial)
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {reason(error)}") from error
    return len(travelling)


class DetectorTask:
    """The task of one worker: a detector on the silo's data.

    Args:
        config: the keys of default_config.yaml.
        shard: folder of the silo's MindRecord.

    Raises:
        UserError: there is no device, no usable shard, no object in it, no usable checkpoint, or
            with run_eval no usable validation set.
    """

    def __init__(self, config: Config, shard: Path):
        use_device(config.device_target, config.device_id, config.threads)
        ms.set_seed(config.seed)
        self._config = config
        self._shard = shard
        self._ranks = getattr(config, "device_num", 1)
        self._rank = getattr(config, "rank", 0)
        self._skipped = 0
        evaluates = config.run_eval and self._rank == 0
        validation = open_validation(config, shard_number(shard)) if evaluates else None
        self.dataset = open_shard(config, shard, self._ranks, self._rank)
        self.steps_per_epoch: int = self.dataset.get_dataset_size()
        self.images = self.steps_per_epoch * config.batch_size * self._ranks
        self.converted = check_mindrecord(shard / (config.prefix or BASE_NAME))
        self.remarks = self._count() if self._rank == 0 else []
        self.network, self.origin = build_detector(config)
        if validation is not None:
            self._evaluator = Evaluator(config, self.network, validation)
            self.origin += f"; evaluates on {validation}"

    def _count(self) -> list[str]:
        """Return the number of objects of each class, and warnings about what is odd in them.

        Raises:
            UserError: there is no object.
        """
        file = self._shard / (self._config.prefix or BASE_NAME)
        objects = count_objects(file)
        require_objects(file, objects)
        odd = [f"WARNING: {words}" for words in odd_objects(objects, self._config.num_gts)]
        return [class_words(objects.per_class or {}, self._config.coco_classes), *odd]

    def skip(self, steps: int) -> None:
        """Begin with the batch that comes after the first `steps` steps of a run.

        Epochs that are skipped completely are present, but without batches.
        """
        self._skipped = steps
        self.dataset = open_shard(self._config, self._shard, self._ranks, self._rank, steps)

    def evaluate(self) -> dict[str, Any]:
        """Return COCO's metrics, per_class, images and seconds for the current weights.

        The network is in training mode before and after. Call it only with run_eval.
        """
        return self._evaluator.run().record()

    @property
    def aspects(self) -> dict[str, object]:
        """Return the aspects of `shared_aspects`."""
        return shared_aspects(self._config, self.network)

    def rates(self, steps_per_iteration: int, iterations: int) -> np.ndarray:
        """Return the learning rate of each step of the whole run, (steps,) float32."""
        return run_lr(self._config, steps_per_iteration, iterations, self.steps_per_epoch)

    def training_step(self, rates: np.ndarray, steps_done: int, terms: Terms = NO_TERMS) -> nn.Cell:
        """Make the cell that trains on one batch and returns the loss.

        Args:
            rates: see `rates`.
            steps_done: number of steps of the run before the first one here, so that a late silo
                has the learning rate of the iteration that it joins.
            terms: what the aggregation algorithm adds to a step; the loss does not include it.
        """
        cell = train_cell(self.network, self._config, rates, terms)
        cell.optimizer.global_step.set_data(Tensor([steps_done], ms.int32))
        return cell

    def callbacks(
        self, label: str, output_dir: Path, status: StatusFile, rates: np.ndarray, steps_done: int
    ) -> list[Callback]:
        """Return callbacks that write loss lines to the log and the loss to the status file."""
        every = self.steps_per_epoch if self._config.dataset_sink_mode else 1
        log_max_bytes, log_files_kept = rotation(self._config)
        loss = LossCallBack(
            per_print_times=every,
            rank_id=self._rank,
            lr=rates,
            name=label,
            folder=output_dir,
            # Skipped epochs come without batches, and are counted then.
            epochs_done=(steps_done - self._skipped) // self.steps_per_epoch,
            steps_done=steps_done,
            log_max_bytes=log_max_bytes,
            log_files_kept=log_files_kept,
            steps_skipped=self._skipped % self.steps_per_epoch,
        )
        return [loss, _StatusCallBack(status, steps_done)]


class _StatusCallBack(Callback):
    """Keeps step and loss of the status file up to date."""

    def __init__(self, status: StatusFile, steps_done: int):
        super().__init__()
        self._status = status
        self.steps_done = steps_done

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Update the status file after a step."""
        params = run_context.original_args()
        self.steps_done += steps_of_call(params)
        loss = mean_loss(params.net_outputs)
        self._status.update(phase="train", step=self.steps_done, loss=loss)
