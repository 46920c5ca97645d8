"""A found architecture elsewhere: on another model, untrained or loaded, and trained on another task."""

from autopeft.transfer.applying import apply, load

__all__ = ["apply", "load"]
