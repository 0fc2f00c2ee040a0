"""The addresses of the page, one module for each kind of thing a visitor does."""
