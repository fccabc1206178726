"""After training: what a run folder knows of its data, used to evaluate, predict and export on raw rows."""
