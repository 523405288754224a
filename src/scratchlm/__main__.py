"""`python -m scratchlm`: the same as the `scratchlm` command."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
