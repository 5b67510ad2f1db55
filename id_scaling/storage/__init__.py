"""Every file format and every path of a session; imports no stage of the pipeline."""
