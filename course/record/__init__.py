"""`course record`: every measurement of the course that needs a GPU, by one command, in order of worth.

The plan (`docs/curriculum.toml`) lists the sections; each is a function of a helper package that gives rows. Also
`python -m course.record`, from a plain checkout that is not installed.
"""

from course.record.setting import Setting

__all__ = ["Setting"]
