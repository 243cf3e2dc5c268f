"""Token ids on disk: written once, verified, mapped."""
