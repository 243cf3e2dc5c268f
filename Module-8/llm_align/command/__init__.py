"""`align`'s commands on Lightning's CLI."""
