"""`python -m llm_scale` is `llm-scale`."""

import sys

from llm_scale.cli import main

if __name__ == "__main__":
    sys.exit(main())
