"""The package's own transports: DynamoDB over HTTP/1.1, from event loops and from plain threads."""
