"""A prepared data set: its manifest, and reading any sample from its shards."""
