"""The quantiser of first stages with a code book."""
