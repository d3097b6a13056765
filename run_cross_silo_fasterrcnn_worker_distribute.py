"""Run run_cross_silo_fasterrcnn_worker_distributed.py under the name of the tutorial's tree."""

from src.errors import require_packages, run_command

require_packages()

from run_cross_silo_fasterrcnn_worker_distributed import main

if __name__ == "__main__":
    run_command(main)
