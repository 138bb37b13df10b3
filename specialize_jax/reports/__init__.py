"""Tables, plots and pages from written results only."""
