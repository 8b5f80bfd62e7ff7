"""5. The server's round: validate the replies, aggregate, step, save."""
