"""What `jaxtrelu sae` does on bad days: see `python tests/faults/run.py --help`."""
