"""`python -m clipray`, the same as `clipray`."""

import sys

from clipray.cli import main

if __name__ == "__main__":
    sys.exit(main())
