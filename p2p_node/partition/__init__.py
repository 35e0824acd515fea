"""One job over many peers: a whole that its client's node splits into parts, each an ordinary job."""
