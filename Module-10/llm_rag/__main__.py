"""`python -m llm_rag` is the command `rag`."""

import sys

from llm_rag.cli import main

sys.exit(main())
