"""`m0 train`."""

from __future__ import annotations

import argparse
import os

from m0.paths import path_of


def run_train(options: argparse.Namespace) -> int:
    """Train as a file says, and print the directory of the result."""
    from m0.engine.parallel import processes, use_cores
    from m0.train import TrainConfig, train

    use_cores()
    changes = {"output": os.path.abspath(path_of(options.output))} if options.output else {}
    config = TrainConfig.load(options.config, changes)
    with processes() as first:
        result = train(config, options.resume)
        if first:
            print(result)
    return 0
