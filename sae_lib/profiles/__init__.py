"""One scale of the experiment per YAML file, and the runs that it plans."""
