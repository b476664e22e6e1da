"""`python -m sluice`: the command line without an install, for example in a job's working directory."""

import sys

from sluice.services.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
