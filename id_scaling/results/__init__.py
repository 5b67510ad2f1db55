"""Tables: estimates, the summary of a session, and how to load them; imports no plot and no study."""
