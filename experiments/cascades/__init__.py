"""`make cascades`: instabilities of a run, measured, explained and drawn."""
