"""From a name to files on this machine with a checksum; imports no extraction, no estimator and no result."""
