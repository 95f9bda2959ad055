"""Callbacks; none of them knows a method."""
