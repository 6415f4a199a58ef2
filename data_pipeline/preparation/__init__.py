"""Writing a prepared data set from published ones: in parallel, over many attempts, with the same result."""
