"""Where keys and values of many requests are kept."""
