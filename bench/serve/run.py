"""``make bench BENCH=serve``: the same as ``nightjar bench``."""

import sys

from bench.serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
