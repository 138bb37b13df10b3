"""One short `main` per command; the only package that imports gin."""
