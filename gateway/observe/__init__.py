"""What happened, told to whoever listens: typed, past-tense events."""
