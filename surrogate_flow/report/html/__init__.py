"""Pages made of the folders of runs alone."""
