"""The command `tdev`."""
