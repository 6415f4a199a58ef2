"""A seeded part of a source."""

from data_pipeline.sample import sample_key
from data_pipeline.sources.base import RawSample, Source


class Selection(Source):
    """``count`` samples of a source (all of them if it has fewer), in the source's order.

    They are those whose ids come first by a hash of seed and id, so a smaller count is a part of a larger one and a
    sample's choice does not hang on its place in the file.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, source: Source, count: int, seed: int):
        if count < 1:
            raise ValueError(f"{source.name}: expected a count of at least 1, not {count}")
        self.source = source
        by_hash = sorted(range(len(source)), key=lambda index: sample_key(str(seed), source.id(index)))
        self.indices = sorted(by_hash[:count])
        super().__init__(source.name, (source.id(index) for index in self.indices), source.digest)

    def read(self, index: int) -> RawSample:
        """See ``Source``."""
        return self.source.read(self.indices[index])

    def place(self, index: int) -> str:
        """See ``Source``."""
        return self.source.place(self.indices[index])
