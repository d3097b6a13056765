"""What `--help` says of keys of default_config.yaml that need more than their default."""

from __future__ import annotations

HELP = {
    "sync_type": "fixed; or adaptive: fewer steps between synchronisations as the silos' changes "
    "stop agreeing, with FedAvg and FedProx; what travels doubles (default 'fixed')",
    "min_consistent_rate": "adaptive: lowest consistency to begin with, 0 or more (default 1.1)",
    "min_consistent_rate_at_round": "adaptive: round in which that was seen (default 0)",
    "ema_alpha": "adaptive: share of earlier rounds in the consistency, 0 to 1 (default 0.5)",
    "observation_window_size": "adaptive: rounds without a new lowest consistency before the steps "
    "become fewer (default 5)",
    "frequency_increase_ratio": "adaptive: divides the steps and multiplies that window, at each "
    "change (default 2)",
    "unchanged_round": "adaptive: rounds in which the steps stay (default 0)",
}
