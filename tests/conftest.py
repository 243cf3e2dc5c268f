"""Its place puts this folder on the import path: tests share `markdown_links` and `course_cache`."""
