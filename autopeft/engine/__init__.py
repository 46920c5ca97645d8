"""Trials: what is asked of one, who runs it, and how it is trained and scored."""
