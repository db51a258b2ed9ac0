"""Builders of tiny models, one module for each library."""
