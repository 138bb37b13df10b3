"""One short `main` per command; the only room that imports gin."""
