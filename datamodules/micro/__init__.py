"""Micro-VTAB: drawing and writing it; ``datamodules/vtab.py`` reads it."""
