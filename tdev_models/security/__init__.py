"""Field encryption: what is secret is encrypted before it is sent to DynamoDB (docs/adr/0023)."""
