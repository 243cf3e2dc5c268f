"""From documents of any length to rows and batches of one length, in an order that can be resumed."""
