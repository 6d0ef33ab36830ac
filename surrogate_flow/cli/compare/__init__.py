"""``surrogate-flow compare``: the same training from several sources of samples."""
