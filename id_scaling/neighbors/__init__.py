"""From points to neighbor distances and statistics; uses no files and no model, imports no torch at module level."""
