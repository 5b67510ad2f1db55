"""`python -m id_scaling`: the command line."""

from id_scaling.cli.main import main

raise SystemExit(main())
