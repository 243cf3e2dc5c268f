"""What `course record` measures for this module; the plan lists each function."""
