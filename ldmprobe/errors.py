"""The one exception for everything a user can put right: a wrong argument, file, dataset or combination of them."""


class ConfigurationError(ValueError):
    """Says what was expected, what came, and what to write instead. The command line prints it without a traceback."""
