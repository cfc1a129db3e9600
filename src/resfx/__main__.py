"""``python -m resfx``."""

import sys

from resfx.cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
