"""How many requests a service bears: laws of queues, one replica step by step, and thousands of them."""
