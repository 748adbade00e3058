"""`m0 fetch`."""

from __future__ import annotations

import argparse


def run_fetch(options: argparse.Namespace) -> int:
    """Download a model, and print where it is."""
    from m0.checkpoints.hub import fetch

    print(fetch(options.model, options.revision, options.to))
    return 0
