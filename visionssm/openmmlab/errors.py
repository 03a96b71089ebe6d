"""What is wrong with a config, said in a sentence."""

from ..errors import UserError


class ConfigError(UserError, ValueError):
    """Parts of a config do not fit each other, its data, or what is installed."""
