"""`python -m m0.cli` is `m0`."""

import sys

from m0.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
