"""Split trained weights into federated and local ones; the key local_params names the local ones.

Each silo trains its local weights by itself. Servers never see them, and silos need not agree on
their values, only on which weights are local.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from src.errors import UserError, nearest


def local_names(names: Iterable[str], patterns: str) -> list[str]:
    """Return those of `names` that are local, in their order.

    Args:
        names: names of the weights that are trained.
        patterns: the key local_params: patterns such as "rcnn.*" separated by commas, in which *
            matches anything; "" makes no weight local.

    Raises:
        UserError: a pattern matches none of the names, or all are matched.
    """
    known = list(names)
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(
                f"local_params: {pattern!r} matches none of the {len(known)} trained weights"
                f"{nearest(pattern, _groups(known))}; they are named like {known[-1]}"
            )
    local = [name for name in known if any(fnmatchcase(name, pattern) for pattern in wanted)]
    if known and len(local) == len(known):
        raise UserError(
            f"local_params: {patterns!r} keeps all {len(known)} trained weights in the silo, so "
            'that none is left to federate; name a part of them, such as "rcnn.*"'
        )
    return local


def _groups(names: Sequence[str]) -> list[str]:
    """Return the names, and a pattern for each part of the network that has some of them."""
    parts = [name.split(".") for name in names]
    groups = [".".join(part[:end]) + ".*" for part in parts for end in range(1, len(part))]
    return [*dict.fromkeys(groups), *names]
