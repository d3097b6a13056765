"""Start the servers of a federation: they average what the silos send.

  python run_cross_silo_fasterrcnn_server.py --yaml_config="default_yaml_config.yaml" \\
         --tcp_server_ip="127.0.0.1" --checkpoint_dir="/path/to/fl_ckpt" --local_server_num=4 \\
         --http_server_address="127.0.0.1:6668"

It starts four servers on ports 6668 to 6671 and returns when all accept requests;
server_0/server.log then holds "Start http server!". A checkpoint_dir without a model gets an
initial one, from --pre_trained or from --seed. A new start begins at iteration 1 and renames the
recovery files of an earlier run; --resume continues the job that Redis and the files describe: it
starts those of the servers that do not run. The servers end by themselves when the last iteration
is done.
"""

from src.errors import require_packages, run_command

require_packages()

from src.launch.command_line import add_server_flags, job_from, launcher_parser
from src.launch.foreground import launch_and_stay
from src.launch.launchers import launch_servers
from src.model_utils.config import get_config


def main() -> int:
    """Parse the command line, check and start."""
    parser = launcher_parser(__doc__)
    add_server_flags(parser)
    config = get_config(parser=parser)
    return launch_and_stay(config.foreground, lambda: launch_servers(job_from(config), config))


if __name__ == "__main__":
    run_command(main)
