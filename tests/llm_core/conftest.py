from course_cache import cache  # noqa: F401  (a fixture)
