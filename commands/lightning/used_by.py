"""Which subcommand uses which option."""

USED_BY = {
    "checkpoint": ("fit",),
    "ema": ("fit",),
    "export_member": ("fit",),
    "features": ("fit",),
    "members": ("fit", "validate", "test"),
    "override_checkpoint": ("fit", "validate", "test", "predict"),
    "score": ("fit", "score"),
    "test_after_fit": ("fit",),
}
"""Subcommands by option. An option that is not listed is used by all."""


def used_by(subcommand: str, option: str) -> bool:
    """Whether a subcommand uses an option such as ``ema.decay``."""
    return subcommand in USED_BY.get(option.partition(".")[0], (subcommand,))
