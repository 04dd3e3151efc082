"""`python -m ldm_core`: the command line of `ldm_core.cli`."""

import sys

from ldm_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
