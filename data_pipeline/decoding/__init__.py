"""From the bytes of an image file to uint8 tiles: Pillow as the reference, a fast CPU path, and DALI."""
