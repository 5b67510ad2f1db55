"""Every file format and every path of a session; imports no stage of the pipeline."""

import os

# HDF5 reads this variable once, when it is loaded, and it overrides the arguments of callers. Locks are not needed,
# since leases exclude a second writer, and NFS and Lustre may not support them.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
