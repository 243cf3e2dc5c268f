"""Pictures that are drawn, so that every answer can be computed again from what was asked for."""
