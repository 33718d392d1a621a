"""Run the command line as `python -m latentkit`, which is what launchers start."""

import sys

from latentkit.cli.main import main

sys.exit(main())
