"""The subcommands of Lightning (fit, score, validate, test, predict), and tools that commands share.

Nothing is imported here, because commands that need one small tool would otherwise load torch.
"""
