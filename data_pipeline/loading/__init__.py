"""From a prepared data set to the rows of each training step: order, packing, reading ahead, exact resume."""
