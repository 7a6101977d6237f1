"""Numbers of things, as sentences for people have them."""


def counted(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun: `1 policy`, `2,000 rows`; `many` where it isn't `one` and s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
