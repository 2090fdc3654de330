"""What is read out of results: labelled data of runs and sweeps -> labelled data with errors."""
