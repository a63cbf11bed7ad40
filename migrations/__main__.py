"""Enters `tdev_models.migrations`, the code's one name."""

from tdev_models.migrations.command import main

raise SystemExit(main())
