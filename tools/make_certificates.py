"""Make an authority and certificates for a federation with enable_ssl: True.

  python tools/make_certificates.py --out=certificates --hosts=192.168.1.5,fl.example.org
  python tools/make_certificates.py --out=renewed --hosts=192.168.1.5 --ca=certificates

--hosts names every address at which silos, servers and tools reach servers, scheduler and Redis.
The second line renews: new certificates that the authority of the first one has signed. All files
have mode 0600, and none is overwritten: ca.crt for every machine, server.p12 and client.p12 with
their passwords, redis.crt and redis.key; and to be put away, ca.key and ca.password, which sign
more. The passwords are those of the environment (FL_SERVER_PASSWORD, FL_CLIENT_PASSWORD,
FL_CA_PASSWORD) or of --ssl_passwords, with --ca those of its folder, else new ones. What goes
where: docs/tls.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import UserError, require_packages, run_command

require_packages("cryptography")

from src.model_utils.config import parse_known, script_parser
from src.printing import print
from src.security.certificates import (
    load_authority,
    new_authority,
    passwords_in,
    settings_text,
    signed_files,
    signing_files,
    with_missing_passwords,
    write_all,
)
from src.security.passwords import FLAG, read_passwords

LONGEST_DAYS = 36500


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("certificates"), help="folder to write")
    parser.add_argument("--hosts", default="127.0.0.1", help="addresses and names, with commas")
    parser.add_argument("--days", type=int, default=365, help="until they expire (default 365)")
    parser.add_argument("--ca_days", type=int, default=3650, help="a new authority (default 3650)")
    parser.add_argument("--ca_name", default="federation", help="a new authority's common name")
    parser.add_argument("--ca", type=Path, help="folder of an earlier call: its authority signs")
    parser.add_argument(FLAG, default="", metavar="FILE", help="NAME=password lines, mode 0600")
    return parser


def main() -> None:
    """Parse, make, write, say what to do with it."""
    args = parse_known(build_parser())
    for flag in ("days", "ca_days"):
        if not 1 <= getattr(args, flag) <= LONGEST_DAYS:
            raise UserError(f"--{flag} is {getattr(args, flag)}, expected 1 to {LONGEST_DAYS}")
    hosts = [host.strip() for host in args.hosts.split(",") if host.strip()]
    if args.ca is None:
        passwords = with_missing_passwords(read_passwords(args.ssl_passwords))
        authority = new_authority(args.ca_name, args.ca_days)
        contents = signing_files(authority, passwords)
    else:
        known = passwords_in(args.ca, args.ssl_passwords)
        authority, contents = load_authority(args.ca, known), {}
        passwords = with_missing_passwords(known)
    contents.update(signed_files(authority, hosts, args.days, passwords))
    write_all(args.out, contents)
    print(f"wrote {', '.join(sorted(contents))} for {', '.join(hosts)} to {args.out}, mode 0600")
    print("to set in the federation's YAML file:", "", sep="\n")
    print(*settings_text(args.out).split("\n"), sep="\n")
    print(f"passwords: {FLAG}={args.out / 'passwords'}, or its lines as environment variables")


if __name__ == "__main__":
    run_command(main)
