"""Which subcommand uses which option."""

USED_BY = {
    "channels_last": ("fit", "validate", "test", "predict"),
    "checkpoint": ("fit",),
    "checkpoint_activations": ("fit",),
    "class_report": ("fit", "test"),
    "compile": ("fit", "validate", "test", "predict"),
    "ema": ("fit",),
    "embeddings": ("predict",),
    "explain": ("predict",),
    "export_member": ("fit",),
    "features": ("fit",),
    "matmul_precision": ("fit", "validate", "test", "predict"),
    "members": ("fit", "validate", "test"),
    "override_checkpoint": ("fit", "validate", "test", "predict"),
    "prompts": ("fit",),
    "score": ("fit", "score"),
    "test_after_fit": ("fit",),
    "top_k": ("predict",),
}
"""Subcommands by option. An option that is not listed is used by all."""


def used_by(subcommand: str, option: str) -> bool:
    """Whether a subcommand uses an option such as ``ema.decay``."""
    return subcommand in USED_BY.get(option.partition(".")[0], (subcommand,))


def used_flags(subcommand: str, args: list[str]) -> list[str]:
    """Flags of a fit without those that another subcommand does not use.

    Args:
        subcommand: The other subcommand.
        args: Flags, ``--name value`` or ``--name=value``.
    """
    kept: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or used_by(subcommand, name):
            kept.append(word)
        elif not equals:
            next(words, None)  # its value
    return kept
