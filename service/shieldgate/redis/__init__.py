"""What replicas share through Redis, and do without when it fails."""
