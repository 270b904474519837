"""One implementation of one op per file, ``backends/<backend>/<op>.py``; inputs arrive checked."""
