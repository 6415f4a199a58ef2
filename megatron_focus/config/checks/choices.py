"""Values to choose from."""


def one_of(key: str, value: object, allowed: tuple[object, ...]) -> list[str]:
    """One sentence if the value is none of those allowed."""
    return [] if value in allowed else [f"{key}={value!r} is unknown; use one of {', '.join(map(str, allowed))}"]
