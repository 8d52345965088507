"""Networks and losses, under their published paths."""
