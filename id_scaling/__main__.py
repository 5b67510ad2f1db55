"""`python -m id_scaling`: the command line."""

from id_scaling.cli import main

raise SystemExit(main())
