"""A plugin that is a script, and ends the process that imports it."""

import sys

sys.exit("usage: acme [OPTIONS]")
