"""Run the process behind `children.Child`: make one object, call its methods, send the results.

Called as `python -m src.benchmarks.child_main DESCRIPTOR MODULE:CLASS`. It imports nothing of the
suite itself, so that the import time of MODULE can be measured.
"""

from __future__ import annotations

import importlib
import sys
import time
from multiprocessing.connection import Connection


def main() -> int:
    """Serve until the other end is closed."""
    connection = Connection(int(sys.argv[1]))
    module, name = sys.argv[2].split(":")
    spec = connection.recv()
    make = getattr(importlib.import_module(module), name)
    imported = time.monotonic()
    from src.errors import UserError

    try:
        work = make(spec)
        connection.send(("result", {"imported": imported, "built": time.monotonic()}))
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return 0
            connection.send(("result", getattr(work, method)(**arguments)))
    except UserError as error:
        connection.send(("error", str(error)))
        return 2


if __name__ == "__main__":
    sys.exit(main())
