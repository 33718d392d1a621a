"""`python -m latentkit`, which is what launchers run."""

import sys

from latentkit.cli import main

sys.exit(main())
