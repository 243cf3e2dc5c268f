"""A run of `babygpt`: its options, what is checked before it, when it validates and saves."""
