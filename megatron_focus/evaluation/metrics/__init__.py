"""How answers are scored; one file for each metric, with the publication it follows."""
