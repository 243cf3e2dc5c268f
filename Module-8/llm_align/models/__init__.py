"""The models of alignment: a policy with its reference, and a model that gives numbers in place of tokens."""
