"""The command line. `--help` and `config check` import neither torch nor Ray nor vLLM, so they answer at
once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from sluice.catalog.errors import RunError, SluiceError
from sluice.cluster.failure import explain_storage
from sluice.services.cli.parser import build_parser

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 a mistake in the input, 3 the cluster, 4 the run, 130 Ctrl-C."""
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        told = explain_storage(error)
        if told is None:
            raise
        print(f"sluice: {told}", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt:
        print("sluice: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
