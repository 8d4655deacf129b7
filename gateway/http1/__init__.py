"""HTTP/1.1 on llhttp: reading requests and responses, and connections to servers."""
