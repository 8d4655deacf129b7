"""`python -m benchmarks`."""

import sys

from benchmarks.commandline import main

sys.exit(main())
