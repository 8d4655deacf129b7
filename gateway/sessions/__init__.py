"""What a client holds: the one session registry, its records and their store."""
