"""`python -m llm_align`: the command `align`."""

import sys

from llm_align.cli import main

sys.exit(main())
