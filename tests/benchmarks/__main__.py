"""`make bench`: all themes of the benchmark."""

import sys

from tests.benchmarks.suite import main

if __name__ == "__main__":
    sys.exit(main())
