"""What stands behind everything that is measured; what it costs itself is not counted."""
