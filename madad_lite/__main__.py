"""python -m madad_lite, the same as madad."""

import sys

from madad_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
