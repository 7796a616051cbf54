"""`python -m marl_flow` is `marl-flow`."""

import sys

from marl_flow.cli import main

if __name__ == "__main__":
    sys.exit(main())
