"""How HTTP gets in: each door turns its requests into Exchanges."""
