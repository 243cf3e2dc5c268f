"""Module 5's helper package."""
