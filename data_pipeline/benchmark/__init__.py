"""Speed of the data path beside transformers' image processors and plain Pillow."""
