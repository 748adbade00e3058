"""The arguments that say where documents may come from, and the policy that they make."""

from __future__ import annotations

import argparse

from m0.inputs.policy import EVERYTHING, SourcePolicy


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --no-urls, --allow-host, --root and --no-private-addresses."""
    policy = parser.add_argument_group("where documents may come from")
    policy.add_argument("--no-urls", action="store_true", help="fetch nothing from the web")
    policy.add_argument("--allow-host", action="append", metavar="HOST", help="fetch from this host only (may be repeated)")
    policy.add_argument("--root", metavar="DIR", help="read files of this folder only")
    policy.add_argument("--no-private-addresses", action="store_true", help="fetch nothing from private and local addresses")


def policy_of(options: argparse.Namespace) -> SourcePolicy:
    """The policy that the arguments make. Raises InputError."""
    if not (options.no_urls or options.allow_host or options.root or options.no_private_addresses):
        return EVERYTHING
    return SourcePolicy(
        urls=not options.no_urls,
        hosts=tuple(options.allow_host) if options.allow_host else None,
        private_addresses=False if options.no_private_addresses else None,
        root=options.root,
    )
