"""`python -m latentkit`, which is what launchers run."""

import sys

from latentkit.cli.main import main

sys.exit(main())
