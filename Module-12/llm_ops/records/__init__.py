"""What `course record` measures of this module."""
