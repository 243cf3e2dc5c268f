"""Module 1's helper package: an autograd engine, a line classifier, and its training by hand and by Lightning."""
