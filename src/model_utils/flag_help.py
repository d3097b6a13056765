"""What `--help` says of keys of default_config.yaml that need more than their default."""

from __future__ import annotations

HELP = {
    "enable_modelarts": "workers: fetch data_url and checkpoint_url before the training, send "
    "output_path to train_url after it, with moxing (default False)",
    "data_url": "ModelArts: folder of mindrecord_0, ..., fetched to data_path; relative paths of "
    "data count from there (default '')",
    "checkpoint_url": "ModelArts: folder of pre_trained, fetched to load_path; without pre_trained "
    "its one .ckpt is it (default '')",
    "train_url": "ModelArts: folder that output_path is sent to, also when the training failed "
    "(default '')",
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
    "local_params": 'trained weights that stay in the silo, as in "rcnn.*", several with commas; '
    "give the servers the same. A worker that is started again without --resume has lost them, "
    "unless it starts from its own newest checkpoint with --pre_trained (default '')",
    "resume_state": "after each synchronisation write what --resume goes on from, one file of the "
    "trained values' size (default True)",
    "dp_clip_norm": "differential privacy: scale the silo's update down to this L2 norm before it "
    "is sent; 0 is off (default 0.0)",
    "dp_noise_multiplier": "times dp_clip_norm: standard deviation of the noise on each value that "
    "is sent; the more, the smaller epsilon (default 0.0)",
    "dp_delta": "what epsilon in worker.log is for: but for this probability, all that the silo "
    "has sent is at most exp(epsilon) times likelier with its data than with any other (default "
    "1e-05)",
    "log_max_mb": "largest size of each log in 10**6 bytes; what comes then goes into a new file, "
    "and the earlier one is worker.log.1; 0: one file for ever (default 64.0)",
    "log_files_kept": "earlier files that are kept of each log (default 4)",
    "keep_checkpoint_max": "checkpoints of global models that each worker keeps, the newest ones, "
    "those from before a restart included; 0 keeps all (default 0)",
}
