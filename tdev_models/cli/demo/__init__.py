"""The command `tdev demo`: one pipeline, killed and recovered, shown from the store."""
