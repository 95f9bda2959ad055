"""Callbacks. They do not depend on methods."""
