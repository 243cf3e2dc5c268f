"""Lightning modules: preferences, rewards, and policies that learn from their own answers."""
