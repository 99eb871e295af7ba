"""The one exception for everything a user can put right: a wrong argument, file, dataset or combination of them."""


class ConfigurationError(ValueError):
    """Says what was expected, what came, and what to write instead. The command line prints it without a traceback."""

    def __str__(self) -> str:
        """The message alone: a data loader's worker puts its traceback before it."""
        message = super().__str__()
        if message.startswith(f"Caught {type(self).__name__} in DataLoader worker"):
            return message.rpartition(f"{type(self).__name__}: ")[2].strip()
        return message
