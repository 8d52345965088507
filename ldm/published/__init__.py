"""What users of the published code bring, thin over what this project has: names, calls, keys of
config files."""
