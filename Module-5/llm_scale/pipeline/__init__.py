"""Pipeline parallelism: the blocks of a model cut over ranks, and the orders in which they work on micro-batches."""
