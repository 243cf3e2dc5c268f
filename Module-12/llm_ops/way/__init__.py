"""The whole way: from text to a model that serves, one stage after another, each sealed when all of its claims hold."""
