"""`python -m llm_peft`: the command `local-lora`."""

import sys

from llm_peft.cli import main

sys.exit(main())
