"""`python -m thermoclaw`, the same as the command `thermoclaw`."""

import sys

from thermoclaw.cli import main

if __name__ == "__main__":
    sys.exit(main())
