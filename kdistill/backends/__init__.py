"""One implementation of one op per file: ``backends/<backend>/<op>.py``.  Inputs arrive checked and contiguous."""
