"""Who owns a session, and the writes that require the ownership."""
