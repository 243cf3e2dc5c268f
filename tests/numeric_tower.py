"""The runtime type check of the helper packages, with Python's numeric tower: an int is a float, as mypy has it.

A module of its own at the top of the import path: the import hook names its checker so.
"""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
