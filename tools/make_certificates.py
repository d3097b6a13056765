"""Make an authority, certificates and a kit for each silo of a federation with enable_ssl: True.

  python tools/make_certificates.py --out=certificates --hosts=192.168.1.5,fl.example.org \\
         --silos=hospital_a,hospital_b --yaml_config=deploy/machines/federation_tls.yaml
  python tools/make_certificates.py --ca=certificates --out=certificates --silos=hospital_c
  python tools/make_certificates.py --ca=certificates --out=renewed --hosts=192.168.1.5

--hosts names every address at which silos, servers and tools reach servers, scheduler and Redis.
The first line writes the coordinator's files: ca.crt, server.p12 and client.p12 with their
passwords, redis.crt and redis.key, federation.yaml with its own secret path, the roster silos.yaml,
and, to be stored safely, ca.key and ca.password, which sign more; and a folder for each silo, which
goes to that silo alone. The second line adds a silo: its folder, and its entry in the roster. The
third renews the coordinator's certificates. Without --silos only certificates are written. All
files have mode 0600, and none but the roster is overwritten. The passwords are those of the
environment (FL_SERVER_PASSWORD, FL_CLIENT_PASSWORD, FL_CA_PASSWORD) or of --ssl_passwords; with
--ca those of its folder; otherwise new ones. docs/tls.md says which file goes where.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import UserError, require_packages, run_command

require_packages("cryptography")

from src.job.kits import FEDERATION, ROSTER, federation_text, silo_names, write_kits
from src.launch.command_line import DEFAULT_JOB
from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.security.certificates import (
    CA_KEY,
    CA_PASSWORD,
    PASSWORDS,
    load_authority,
    new_authority,
    passwords_in,
    settings_text,
    signed_files,
    signing_files,
    with_missing_passwords,
    write_all,
)
from src.security.key_files import Certified
from src.security.passwords import FLAG, read_passwords

LONGEST_DAYS = 36500


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("certificates"), help="folder to write")
    parser.add_argument("--hosts", default="127.0.0.1", help="addresses and names, with commas")
    parser.add_argument("--silos", default="", help="names of the silos to make kits for")
    parser.add_argument(
        "--yaml_config", default=DEFAULT_JOB, help="the federation's file that kits are made from"
    )
    parser.add_argument("--days", type=int, default=365, help="until they expire (default 365)")
    parser.add_argument("--ca_days", type=int, default=3650, help="a new authority (default 3650)")
    parser.add_argument("--ca_name", default="federation", help="a new authority's common name")
    parser.add_argument("--ca", type=Path, help="folder of an earlier call: its authority signs")
    parser.add_argument(FLAG, default="", metavar="FILE", help="NAME=password lines, mode 0600")
    return parser


def main() -> None:
    """Parse the command line, write the certificates and say what to do with them."""
    args = parse_known(build_parser())
    for flag in ("days", "ca_days"):
        if not 1 <= getattr(args, flag) <= LONGEST_DAYS:
            raise UserError(f"--{flag} is {getattr(args, flag)}, expected 1 to {LONGEST_DAYS}")
    hosts = [host.strip() for host in args.hosts.split(",") if host.strip()]
    names = silo_names(args.silos) if args.silos else []
    if args.ca is None:
        passwords = with_missing_passwords(read_passwords(args.ssl_passwords))
        authority = new_authority(args.ca_name, args.ca_days)
        contents = signing_files(authority, passwords)
    else:
        known = passwords_in(args.ca, args.ssl_passwords)
        authority, contents = load_authority(args.ca, known), {}
        passwords = with_missing_passwords(known)
    if args.ca is None or not names:
        contents.update(signed_files(authority, hosts, args.days, passwords))
    if names:
        make_kits(args, names, authority, contents)
        return
    write_all(args.out, contents)
    print(f"wrote {', '.join(sorted(contents))} for {', '.join(hosts)} to {args.out}, mode 0600")
    print(
        "to set in the federation's YAML file:", "", *settings_text(args.out).split("\n"), sep="\n"
    )
    print(f"passwords: {FLAG}={args.out / PASSWORDS}, or its lines as environment variables")


def make_kits(
    args: argparse.Namespace, names: list[str], authority: Certified, contents: dict[str, bytes]
) -> None:
    """Write the kits and the coordinator's files, and say what to do with them."""
    federation = args.out / FEDERATION
    if args.ca is None:
        text = federation_text(args.yaml_config)
        contents[FEDERATION] = text.encode()
    else:
        text = federation_text(str(federation.absolute()))
    members = write_kits(args.out, names, authority, args.days, text, contents)
    for name in names:
        print(f"kit of {name}: {args.out / name}, for that silo alone")
    print(f"{args.out / ROSTER}: {', '.join(sorted(member.name for member in members))}")
    print(
        f"servers and scheduler: --yaml_config={federation} {FLAG}={args.out / PASSWORDS} "
        f"--roster={args.out / ROSTER}"
    )
    if contents:
        print(f"to put away, since it signs more: {args.out / CA_KEY}, {args.out / CA_PASSWORD}")


if __name__ == "__main__":
    run_command(main)
