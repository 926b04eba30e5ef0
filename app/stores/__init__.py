"""Where things are kept: photos (object store), results (Redis), and the embedded server for one machine."""
