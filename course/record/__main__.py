"""`python -m course.record` is the command `course record`, and needs nothing that is not on a GPU image."""

import sys

from course.cli import main

sys.exit(main(["record", *sys.argv[1:]]))
