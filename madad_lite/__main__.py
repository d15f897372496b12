"""python -m madad_lite, the same as madad: where the command line is started."""

import sys


def start() -> int:
    """The exit code, 130 also for a Ctrl-C before the command line is there to take it."""
    try:
        from madad_lite.cli import main

        return main()
    except KeyboardInterrupt:
        print("madad: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
