"""Counts in messages: a number and a noun in the singular or plural."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 point", "2 points" or "0 points". The plural is the noun with an s."""
    return f"{number} {noun}{'s' * (number != 1)}"
