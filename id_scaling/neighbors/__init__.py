"""Points to neighbor distances and statistics: knows no file and no model, imports no torch at module level."""
