"""The error of a sample that cannot be used."""


class SampleError(ValueError):
    """Why one sample cannot be used; the program decides whether to stop or to leave the sample out.

    Args:
        reason: a few fixed words by which samples left out are counted, e.g. ``truncated image``.
        message: names the file, the sample's id, the key and the value, as far as the place that raises knows them.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def at(self, place: str) -> "SampleError":
        """The same error with the place put before its message."""
        return SampleError(self.reason, f"{place}: {self}")

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        """Errors of reading processes are raised again in the trainer's."""
        return SampleError, (self.reason, str(self))
