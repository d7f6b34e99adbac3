"""Studies: an experiment run again and again, over settings and seeds, and what may be said of the outcome."""
