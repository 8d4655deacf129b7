"""One upstream handshake over one transport."""
