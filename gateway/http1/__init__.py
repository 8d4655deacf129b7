"""HTTP/1.1 on llhttp: the gateway's own client."""
