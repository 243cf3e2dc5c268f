"""Its place puts this folder on the import path: tests share `markdown_links` and `course_cache`.

It also gives each worker, and each process that a test starts, one thread: two workers with two threads each wait for
each other at every small matrix product.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which reads it once
