"""What the command `tdev` and the page both show, before either draws it; no I/O."""
