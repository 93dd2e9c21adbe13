"""`python -m herd`, the form that torchrun starts."""

import sys

from herd.cli import main

if __name__ == "__main__":
    sys.exit(main())
