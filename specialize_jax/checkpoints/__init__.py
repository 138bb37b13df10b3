"""Parameters in and out: Orbax for our own runs, converters for the world."""
