"""Long versions of tests, full size; `.ci/full` runs them."""
