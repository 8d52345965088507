"""Config files: merged, checked, and made into objects."""
