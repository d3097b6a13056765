"""Stands in for ModelArts' moxing: the object store is the folder MOXING_ROOT.

Each copy is noted in MOXING_ROOT/copies.txt; one of an address with "slow" in it takes a second.
"""

import os
import shutil
import time
from pathlib import Path


def _place(url: str) -> Path:
    return Path(os.environ["MOXING_ROOT"], url[5:]) if url.startswith("s3://") else Path(url)


class file:
    """`moxing.file`, as far as the suite calls it."""

    @staticmethod
    def copy_parallel(src_url: str, dst_url: str) -> None:
        with Path(os.environ["MOXING_ROOT"], "copies.txt").open("a") as log:
            log.write(f"{os.getpid()} {src_url} {dst_url}\n")
        if not _place(src_url).is_dir():
            raise OSError(f"no such folder in the store: {src_url}")
        time.sleep(1.0 if "slow" in src_url else 0.0)
        shutil.copytree(_place(src_url), _place(dst_url), dirs_exist_ok=True)
