"""What the package does: session tracking, recovery, history and metrics.

Every function takes its client first; `tdev_models` and `tdev_models.sync` bind it.
"""
