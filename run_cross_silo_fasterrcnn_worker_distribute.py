"""The name that the tutorial's tree gives to run_cross_silo_fasterrcnn_worker_distributed.py."""

from run_cross_silo_fasterrcnn_worker_distributed import main
from src.errors import run_command

if __name__ == "__main__":
    run_command(main)
