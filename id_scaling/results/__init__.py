"""Tables: estimates, the summary of a session, and functions that load them; imports neither plots nor study."""
