"""Write the gate: a configuration of nginx that lets the silos of a roster through to the servers.

  python tools/make_gate.py --roster=silos.yaml --listen=10.0.0.2:6668 --local_server_num=2

The servers listen on 127.0.0.1 (--http_server_address and the next ports), the gate on --listen and
the next ports; silos get the gate's addresses. --yaml_config is the federation's file of the silos'
kits; the servers get the one that this tool writes, without encryption, since their traffic does
not leave the machine. The gate needs nginx with its JavaScript module (Debian: nginx-light and
libnginx-mod-http-js) and no root. After a change of the roster, run this again with the same flags
and let nginx reload: a silo without an entry is then refused. docs/several_machines.md has more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import require_packages, run_command

require_packages("cryptography", "jinja2", "yaml")

from src.launch.command_line import DEFAULT_JOB
from src.launch.gate import (
    CONFIGURATION,
    FEDERATION,
    configuration,
    servers_behind,
    servers_job,
    write_gate,
)
from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.security.roster import load


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--yaml_config", default=DEFAULT_JOB, help="the federation's YAML file, as silos have it"
    )
    parser.add_argument("--roster", default="silos.yaml", help="the members (default silos.yaml)")
    parser.add_argument(
        "--certificates",
        type=Path,
        default=Path("certificates"),
        help="folder of ca.crt, gate.crt and gate.key (default certificates)",
    )
    parser.add_argument(
        "--listen", required=True, help="ip:port at which silos reach the first server"
    )
    parser.add_argument(
        "--http_server_address", default="127.0.0.1:6668", help="ip:port of the first server"
    )
    parser.add_argument(
        "--local_server_num", type=int, default=4, help="servers, on consecutive ports (default 4)"
    )
    parser.add_argument(
        "--max_upload_mb", type=int, default=400, help="largest upload (default 400)"
    )
    parser.add_argument("--out", type=Path, default=Path("gate"), help="folder (default gate)")
    return parser


def main() -> None:
    """Parse the command line, check, write the gate and say how to start it."""
    args = parse_known(build_parser())
    job, roster = servers_job(args.yaml_config), load(args.roster)
    servers = servers_behind(args.listen, args.http_server_address, args.local_server_num)
    folder = args.out.absolute()
    text = configuration(job, roster, args.certificates, servers, folder, args.max_upload_mb)
    write_gate(folder, text, job)
    print(f"{folder / CONFIGURATION}: {len(roster.members)} silos: {', '.join(roster.members)}")
    for server in servers:
        print(f"  {server.listen} leads to {server.address}")
    print(f"servers and scheduler: --yaml_config={folder / FEDERATION}")
    command = f"/usr/sbin/nginx -e {folder / 'error.log'} -c {folder / CONFIGURATION}"
    print(f"start:  {command}\nreload: {command} -s reload\nend:    {command} -s quit")


if __name__ == "__main__":
    run_command(main)
