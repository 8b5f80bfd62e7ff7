"""4. A client's round: take what was sent, train, pack what leaves."""
