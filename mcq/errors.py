"""The exceptions that mcq raises on purpose. All are `ValueError`, so that callers need not know them."""


class McqError(ValueError):
    """Base of every error that mcq raises on purpose."""


class InputError(McqError):
    """Raised when an array has the wrong shape, type or values."""


class ConfigError(McqError):
    """Raised when an option is unknown, out of range or contradicts another."""


class NotFittedError(McqError):
    """Raised when a quantizer is used before it was fitted."""


class FormatError(McqError):
    """Raised when a file is truncated, altered, foreign or newer than this mcq."""
