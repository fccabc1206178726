"""The report of a run: the files of a run folder in, one page of HTML and a model card out."""
