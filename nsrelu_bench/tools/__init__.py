"""Commands beside the main way; each module is used by itself."""
