"""Every file format and every path of a session; imports no stage of the pipeline."""

import os

# HDF5 reads it once, when it is loaded, and lets it override what a caller asks for. Leases keep writers apart, so
# locks are not needed, and NFS and Lustre may have none.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
