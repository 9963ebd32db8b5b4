"""Every option of a run: dataclasses, the YAML file, the command line, and the configs that are shipped."""
