"""The one kind of error that a user causes and can correct."""


class InputError(ValueError):
    """A file, value or setting that cannot be used; its message names it and says what to do."""
