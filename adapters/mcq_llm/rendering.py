"""Templates, and how numbers look in them."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Return the templates, with the formats of numbers that they share."""
    found = Environment(
        loader=PackageLoader("mcq_llm"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"count": count, "megabytes": megabytes, "duration": duration, "significant": significant}
    return found


def megabytes(size: float) -> str:
    """Return bytes as MB of 10**6 bytes, or as GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def count(number: int) -> str:
    """Return a large number for people.

    Examples
    --------
    >>> count(5760), count(106_168_320), count(7_500_000_000)
    ('5,760', '106.2 million', '7.5 billion')
    """
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Return seconds for people.

    Examples
    --------
    >>> duration(3.21), duration(75), duration(9000)
    ('3.2 s', '1 min 15 s', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits, or a dash for none."""
    return "–" if value is None else f"{value:#.{digits}g}".rstrip(".")
