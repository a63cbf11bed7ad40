"""Plans requests with PynamoDB, sends them, and loads the answers."""
