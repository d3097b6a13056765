"""The data path in processes of its own: images to MindRecord, MindRecord to batches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mindspore as ms

from src.benchmarks.measure import Setting, memory_gb
from src.data.conversion import data_to_mindrecord_byte_image
from src.data.mindrecord_file import BASE_NAME
from src.dataset import create_fasterrcnn_dataset

EPOCHS = 3


class DataWork:
    """Conversion or reading.

    Args:
        setting: with the keys of the data laid over the configuration.
    """

    def __init__(self, setting: Setting):
        self._config = setting.load()
        ms.set_seed(self._config.seed)

    def convert(self) -> dict[str, float]:
        """Write the MindRecord: its `seconds`, `peak_gb` of the process, `added_gb` of it."""
        before, start = memory_gb("VmRSS"), time.monotonic()
        data_to_mindrecord_byte_image(self._config, self._config.dataset, True, BASE_NAME, 1)
        seconds = time.monotonic() - start
        peak = memory_gb("VmHWM")
        return {"seconds": seconds, "peak_gb": peak, "added_gb": peak - before}

    def read(self) -> dict[str, Any]:
        """Iterate over all batches, `EPOCHS` times.

        Returns:
            `images` and `seconds` from the first batch to the last one, `first_batch_s`, `peak_gb`.
        """
        start = time.monotonic()
        data = create_fasterrcnn_dataset(
            self._config,
            Path(self._config.mindrecord_dir) / BASE_NAME,
            batch_size=self._config.batch_size,
            num_parallel_workers=self._config.num_parallel_workers,
            python_multiprocessing=self._config.python_multiprocessing,
        )
        batches = data.create_tuple_iterator(num_epochs=EPOCHS)
        arrived = [time.monotonic() for _ in range(EPOCHS) for _ in batches]
        return {
            "images": (len(arrived) - 1) * self._config.batch_size,
            "seconds": arrived[-1] - arrived[0],
            "first_batch_s": arrived[0] - start,
            "peak_gb": memory_gb("VmHWM"),
        }
