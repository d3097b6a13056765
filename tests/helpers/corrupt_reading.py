"""Read corrupt checkpoints or MindRecords in a separate process, since libraries may crash.

  python corrupt_reading.py checkpoint|mindrecord FOLDER COUNT SEED

Ends with 0 when each of COUNT corrupt files was read or refused with a UserError; the last file
that was read stays in FOLDER.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspore
import numpy as np
from coco_files import jpeg

from src.data.mindrecord import check_mindrecord, locked_folder, row, write_rows
from src.dataset import create_fasterrcnn_dataset
from src.errors import UserError
from src.launch.checkpoint_content import checkpoint_shapes
from src.model_utils.config import PROJECT_DIR, load_config
from src.weights.pretrained import read_checkpoint

TINY = PROJECT_DIR / "configs" / "tiny" / "default_config.yaml"
NAME = "FasterRcnn.mindrecord"
BOXES = np.array([[1, 2, 30, 20, 1, 0]], np.int32)


def corrupt(data: bytes, rng: np.random.RandomState, head: int) -> bytes:
    """Return `data` cut short, or with one to four bytes of its head replaced, added or removed.

    Half of the results have only digits changed, which keeps a text's form intact.
    """
    result = bytearray(data)
    digits = [at for at, byte in enumerate(data[:head]) if chr(byte).isdigit()]
    if digits and rng.randint(2):
        for at in rng.choice(digits, rng.randint(1, 3)):
            result[at] = ord("0") + rng.randint(10)
        return bytes(result)
    for _ in range(rng.randint(1, 5)):
        at = int(rng.randint(min(head, len(result)) or 1))
        some = rng.bytes(int(rng.randint(1, 9)))
        what = rng.randint(4)
        if what == 0:
            result[at : at + len(some)] = some
        elif what == 1:
            result[at:at] = some
        elif what == 2:
            del result[at : at + len(some)]
        elif rng.randint(4) == 0:
            del result[rng.randint(len(result) or 1) :]
    return bytes(result)


def read_checkpoints(folder: Path, count: int, rng: np.random.RandomState) -> int:
    """Read corrupt copies of a small checkpoint with both readers; return how many were refused."""
    path = folder / "whole.ckpt"
    values = {"conv.weight": np.ones((2, 3), np.float32), "mean": np.zeros(4, np.float32)}
    content = [{"name": k, "data": mindspore.Tensor(v)} for k, v in values.items()]
    mindspore.save_checkpoint(content, str(path))
    whole, target = path.read_bytes(), folder / "corrupt.ckpt"
    refused = 0
    for _ in range(count):
        target.write_bytes(corrupt(whole, rng, len(whole)))
        for read in (checkpoint_shapes, read_checkpoint):
            refused += _is_refused(read, target)
    return refused


def read_mindrecords(folder: Path, count: int, rng: np.random.RandomState) -> int:
    """Read corrupt copies of a small MindRecord; return how many were refused.

    Every second copy has its index corrupt instead of its header.
    """
    source, target = folder / "whole", folder / "corrupt"
    with locked_folder(source):
        write_rows(source / NAME, [[row(jpeg(number), BOXES) for number in range(3)]])
    shutil.copytree(source, target)
    names, refused = (NAME, f"{NAME}.db"), 0
    config = load_config(TINY)
    heads = (_header_length(source / NAME), 2**16)
    for number in range(count):
        for name in names:
            shutil.copy(source / name, target / name)
        name, head = names[number % 2], heads[number % 2]
        (target / name).write_bytes(corrupt((source / name).read_bytes(), rng, head))
        refused += _is_refused(lambda path: _read_rows(config, path), target / NAME)
    return refused


def _header_length(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def _read_rows(config, path: Path) -> None:
    check_mindrecord(path)
    data = create_fasterrcnn_dataset(config, path, 1, num_parallel_workers=1)
    for _ in data.create_tuple_iterator(output_numpy=True, num_epochs=1):
        pass


def _is_refused(read, path: Path) -> bool:
    try:
        read(path)
    except UserError as error:
        assert str(error).isprintable(), str(error)
        return True
    return False


if __name__ == "__main__":
    READERS = {"checkpoint": read_checkpoints, "mindrecord": read_mindrecords}
    kind, where, times, seed = sys.argv[1:]
    print(READERS[kind](Path(where), int(times), np.random.RandomState(int(seed))))
