"""Commands that examine: check, ops, born-dead, doctor. Import the modules, not this package."""
